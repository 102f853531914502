import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array

from .._atomic import write_atomically
from ._arrays import CheckpointError, to_array_of_safetensors, without_duplicates
from ._formats import by_name, dtypes
from ._msgpack import read_msgpack
from ._torch import read_torch
from ._zip import members, read_npz, to_npz

_ZIP = b"PK\3\4"
_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # the first bytes of a msgpack map, but for an empty one


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file of another library by their names, without running code from the file.

    The first bytes tell the format; the name of the file does not matter. Files may be:

    - msgpack, as flax writes nested dictionaries of arrays (`*.theta.state`, `*.msgpack`). Names are the keys joined
        with `/`.
    - PyTorch's zip files of a `state_dict` (`*.pt`, `*.pth`), in which each tensor has its own numbers, row by row.
    - safetensors.
    - npz of NumPy, not compressed. Haiku's `{"mlp/~/linear_0": {"w": ...}}` has the name `mlp/~/linear_0/w`.

    Arrays have the dtypes float16, bfloat16, float32, float64, or integers. Sizes that a file claims are compared with
    the bytes that there are before anything is allocated. Only zip files have checksums. In others, a changed byte
    among the numbers cannot be noticed; changed names and shapes are refused by
    [`lo_components.interop.from_reference`][].

    **Arguments:**

    - `path`: the file.

    **Returns:** the arrays, in the order of the file; in that of their names for safetensors.

    Raises `CheckpointError`, which names the file and the reason, if the file is damaged, of another format, or holds
    anything else than arrays.
    """
    path = Path(path).expanduser()
    data = path.read_bytes()
    try:
        return by_name(_reader(data)(data))
    except Exception as error:  # whatever the parsers of JSON, zip and safetensors raise for damaged files
        raise CheckpointError(f"`{path}` cannot be read: {error or type(error).__name__}.") from None


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray | Array]) -> None:
    """Write arrays by their names, for other libraries. Writing is atomic, and equal arrays give equal bytes.

    **Arguments:**

    - `path`: the file, `*.npz` for NumPy (which has no bfloat16) or `*.safetensors`; replaced if it exists.
    - `arrays`: the arrays, for instance the result of [`lo_components.interop.to_reference`][].

    Raises `ValueError` if the path has another suffix, or if `read_arrays` could not read the file: if there are no
    arrays, a name is too long, or an array has another dtype than those of `read_arrays`.
    """
    path = Path(path).expanduser()
    if path.suffix not in _WRITERS:
        raise ValueError(f"`path` must end in {' or '.join(_WRITERS)}, got `{path}`.")
    converted = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in converted.items():
        too_new = path.suffix == ".npz" and array.dtype == dtypes()["bfloat16"]
        if too_new or array.dtype not in dtypes().values():
            raise ValueError(
                f"`{name}` is {array.dtype}, which is not written to {path.suffix} files; convert it before."
            )
    try:
        content = _WRITERS[path.suffix](by_name(converted.items()))
    except ValueError as error:
        raise ValueError(f"`{path}` is not written, since {error}.") from None
    write_atomically(path, content)


def _reader(data: bytes) -> Callable[[bytes], Iterator[tuple[str, np.ndarray]]]:
    """The reader for a file that begins like `data`."""
    if data.startswith(_ZIP):
        return _read_zip
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _read_safetensors
    if data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise ValueError("it is a pickle, which can run any code; let its authors save arrays as safetensors")
    if data[:1] and data[0] in _MAPS:
        return read_msgpack
    raise ValueError("it does not begin like msgpack, PyTorch's zip format, safetensors or npz, or it is cut short")


def _read_zip(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    files = members(data)
    if all(name.endswith(".npy") for name in files):
        return read_npz(files)
    folder, _, _ = next(iter(files)).partition("/")
    if f"{folder}/data.pkl" in files and all(name.startswith(f"{folder}/") for name in files):
        return read_torch(files, f"{folder}/")
    raise ValueError("it is a zip archive, but neither NumPy's nor PyTorch's")


def _read_safetensors(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import deserialize

    found = sorted(deserialize(data), key=lambda pair: pair[0])
    length = int.from_bytes(data[:8], "little")
    json.loads(data[8 : 8 + length], object_pairs_hook=without_duplicates)
    for name, parts in found:
        array = to_array_of_safetensors(**parts)
        if array.dtype not in dtypes().values():
            raise ValueError(f"it has `{name[:80]}` in the dtype {array.dtype}, which is not known")
        yield name, array.copy()


def _to_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(arrays)


_WRITERS: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {".npz": to_npz, ".safetensors": _to_safetensors}
