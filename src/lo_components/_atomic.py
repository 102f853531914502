"""Atomic file writes, in which a file is replaced completely or not at all, and locks."""

import contextlib
import errno
import os
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that replaces it when the block ends without an error.

    A reader of `path` always finds either the old file or the complete new one. A killed process leaves at most the
    temporary file behind. After the block, the new file is on disk under its name, even if the power fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write the concatenated `parts` to `path`, atomically."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.writelines(parts)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that killed processes of this machine left in a folder."""
    for path in folder.iterdir():
        found = re.fullmatch(r"\..+\.(\d+)-\d+\.tmp", path.name)
        if found and not _alive(int(found[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure, on systems that can open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """A lock that lasts until the block ends or the process does, however it ends. The file exists as long.

    Raises `BlockingIOError`, whose message names the process, if another one has the lock. If the file system has no
    locks, there is none.
    """
    while True:
        file = path.open("a+b")
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                with file:
                    file.seek(0)
                    raise BlockingIOError(file.read(200).decode(errors="replace") or "another process") from None
        # The process that had the lock may have removed the file after it was opened here, or may do so now.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        try:
            yield
        finally:
            if os.name == "posix":  # elsewhere an open file cannot be removed
                path.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    """Raises `OSError` at once if another process has the lock."""
    if os.name == "nt":
        import msvcrt

        # A lock keeps others from reading, so it is on a byte beyond the end.
        os.lseek(descriptor, 2**30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
