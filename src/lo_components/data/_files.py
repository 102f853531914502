"""What the readers share: finding files, and errors that name them."""

import contextlib
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path


def existing_folder(folder: str | Path, expected: str) -> Path:
    """`folder` as a path; `expected` says what should be in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; expected one with {expected}.")
    return folder


def find(folder: Path, *names: str) -> Path:
    """The first of several files that exists."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if len(names) == 1:
        raise FileNotFoundError(f"`{folder}` has no file `{names[0]}`.")
    raise FileNotFoundError(f"`{folder}` has neither {' nor '.join(f'`{name}`' for name in names)}.")


@contextlib.contextmanager
def naming(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises into a `ValueError` that says which file is not of this kind."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        raise ValueError(f"`{path}` is not {kind} ({error or type(error).__name__}).") from None


def refuse_absurd_size(path: Path, size: int) -> None:
    """Refuse to unpack what claims to be far larger than its file: images shrink to a fifth, hardly to a hundredth."""
    packed = path.stat().st_size
    if size > 2**20 + 200 * packed:
        raise ValueError(f"`{path}` has {packed} bytes and claims to unpack to {size}; it is not unpacked.")


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, unzipped where its name ends in `.gz`, or fewer where it is shorter."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            return file.read(min(size, path.stat().st_size))
    with naming(path, "a complete gzip file"), gzip.open(path) as file:
        return file.read(size)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
