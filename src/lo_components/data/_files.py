"""File handling shared by the readers; every error names the file."""

import contextlib
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path


def existing_folder(folder: str | Path, contents: str) -> Path:
    """`folder` as a path; the error for a missing folder says that it should hold `contents`."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; expected one with {contents}.")
    return folder


def find_file(folder: Path, *names: str) -> Path:
    """The first of `names` that is a file in `folder`."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if len(names) == 1:
        raise FileNotFoundError(f"`{folder}` has no file `{names[0]}`.")
    raise FileNotFoundError(f"`{folder}` has neither {' nor '.join(f'`{name}`' for name in names)}.")


@contextlib.contextmanager
def parsing(path: Path, file_type: str) -> Iterator[None]:
    """Turn any exception of a parser into a `ValueError` saying that `path` is not `file_type`."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        raise ValueError(f"`{path}` is not {file_type} ({error or type(error).__name__}).") from None


def refuse_decompression_bomb(path: Path, unpacked_size: int) -> None:
    """Refuse files that claim to unpack to hundreds of times their size; images rarely compress tenfold."""
    size = path.stat().st_size
    if unpacked_size > 2**20 + 200 * size:
        raise ValueError(f"`{path}` has {size} bytes and claims to unpack to {unpacked_size}; it is not unpacked.")


def read_prefix(path: Path, size: int) -> bytes:
    """Up to `size` bytes from the start of a file, decompressed if its name ends in `.gz`."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            return file.read(min(size, path.stat().st_size))
    with parsing(path, "a complete gzip file"), gzip.open(path) as file:
        return file.read(size)


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
