"""Arrays in zip archives whose members are not compressed: NumPy's npz."""

import io
import re
import zipfile
from collections.abc import Iterator

import numpy as np

from ._formats import dtypes, to_array

_HEADER = re.compile(rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n")


def members(data: bytes) -> dict[str, bytes]:
    """The members of a zip archive by name. Together they are no longer than `data`, and their checksums are right."""
    end = data[-22:]
    if not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0"):
        raise ValueError("it is cut short, or something follows its zip archive")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) != int.from_bytes(end[10:12], "little"):
            raise ValueError("it has another number of members than it claims")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"its member `{entry.filename[:80]}` is compressed, and what it would unpack to has no bound "
                    "(`numpy.savez` does not compress)"
                )
            if entry.compress_size != entry.file_size or entry.flag_bits & 0x1:
                raise ValueError(f"its member `{entry.filename[:80]}` is encrypted or damaged")
        if min((entry.header_offset for entry in entries), default=0) != 0:
            raise ValueError("something precedes its zip archive")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its members overlap")
        if len({entry.filename for entry in entries}) != len(entries):
            raise ValueError("it has two members of one name")
        return {entry.filename: archive.read(entry) for entry in entries}


def read_npz(files: dict[str, bytes]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an npz archive."""
    for name, content in files.items():
        yield name.removesuffix(".npy"), _read_npy(name.removesuffix(".npy"), content)


def _read_npy(name: str, content: bytes) -> np.ndarray:
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _HEADER.fullmatch(content[10:start])
    if not content.startswith(b"\x93NUMPY\1\0") or header is None:
        raise ValueError(f"it has `{name[:80]}` without a header of the npy format, version 1.0, or with fields in it")
    known = {dtype.newbyteorder("<").str: key for key, dtype in dtypes().items() if dtype != dtypes()["bfloat16"]}
    descr, order, shape = (part.decode("latin-1") for part in header.groups())
    if "O" in descr:
        raise ValueError(f"it has `{name[:80]}` as an array of Python objects, which only running a pickle could read")
    if not re.fullmatch(r"(\d+,( \d+(, \d+)*)?)?", shape) or len(shape) > 1000:
        raise ValueError(f"it has `{name[:80]}` with a shape that no array has")
    sizes = tuple(int(n) for n in shape.split(",") if n)
    if order == "True":
        return to_array(name, known.get(descr, descr), sizes[::-1], content[start:]).T
    return to_array(name, known.get(descr, descr), sizes, content[start:])


def to_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an npz archive. The bytes depend only on the arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    return buffer.getvalue()
