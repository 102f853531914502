"""Dictionaries of tensors in PyTorch's zip format, without PyTorch and without running their pickle."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._pickle import Name, interpret
from ._formats import to_array

_MAX_INDEX = 2**20  # bytes; a tensor takes about 100
_MEMBERS = {"data.pkl", "byteorder", "version"}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
}
_NAMES = {
    ("collections", "OrderedDict"): "OrderedDict",
    ("torch._utils", "_rebuild_tensor_v2"): "_rebuild_tensor_v2",
    **{("torch", name): name for name in _STORAGES},
}


@dataclasses.dataclass(eq=False)
class _Storage:
    dtype: str
    key: str
    size: int


@dataclasses.dataclass(eq=False)
class _Tensor:
    storage: _Storage
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def read_torch(files: dict[str, bytes], folder: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a `state_dict` in the members of a zip archive, which are in a folder, `"name/"`."""
    files = {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}
    if files.get("byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian")
    if files.get("version") not in (b"2\n", b"3\n"):
        raise ValueError("its version of PyTorch's format is not known")
    odd = [name for name in files if not name.startswith(("data/", ".")) and name not in _MEMBERS]
    if odd:
        raise ValueError(f"it has the member `{odd[0][:80]}`, which belongs to no dictionary of tensors")
    index = files["data.pkl"]
    if len(index) > _MAX_INDEX:
        raise ValueError(f"its index of tensors has more than {_MAX_INDEX} bytes")
    tensors = interpret(
        index, names=_NAMES, call=_call, set_state=_set_state, persistent=_storage, max_operations=len(index)
    )
    if type(tensors) is not dict:
        raise ValueError("it has something else than a dictionary of tensors")
    data = {name.removeprefix("data/"): content for name, content in files.items() if name.startswith("data/")}
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"it has `{name[:80]}`, which is not a tensor, in its dictionary of tensors")
        yield name, _array(name, tensor, data)
    if data:
        raise ValueError(f"it has the numbers `data/{min(data)[:80]}`, which belong to no tensor")


def _array(name: str, tensor: _Tensor, data: dict[str, bytes]) -> np.ndarray:
    storage = tensor.storage
    if storage.key not in data:
        raise ValueError(f"it has no numbers for `{name[:80]}`, or two tensors share them; save a `clone` of each")
    array = to_array(name, storage.dtype, tensor.shape, data.pop(storage.key))
    if storage.size != array.size:
        raise ValueError(f"it has `{name[:80]}` with {storage.size} numbers, but a shape of {array.size}")
    expected = [stride // array.itemsize for stride in array.strides]
    axes = zip(tensor.shape, tensor.strides, expected, strict=True)
    if array.size and any(size > 1 and stride != needed for size, stride, needed in axes):
        raise ValueError(f"it has `{name[:80]}` in another order than row by row; save what `contiguous` returns")
    return array


def _storage(identifier: Any) -> _Storage:
    match identifier:
        case "storage", Name(str() as kind), str() as key, str(), int() as size if kind in _STORAGES:
            return _Storage(_STORAGES[kind], key, size)
    raise ValueError("it refers to something that is not the numbers of a tensor")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case Name("OrderedDict"), ():
            return {}
        case Name("_rebuild_tensor_v2"), (
            _Storage() as storage,
            0,
            tuple() as shape,
            tuple() as strides,
            bool(),
            hooks,
        ):
            if len(shape) == len(strides) and hooks == {}:
                return _Tensor(storage, shape, strides)
        case Name("_rebuild_tensor_v2"), (_Storage(), int() as offset, *_) if offset:
            raise ValueError("it has a tensor that begins in the middle of its numbers, which others may share")
    raise ValueError("it calls a function that dictionaries of tensors do not need")


def _set_state(state: Any, target: Any) -> None:
    """Ignore the versions of modules, which PyTorch adds to a `state_dict` as an attribute."""
    if type(target) is not dict or type(state) is not dict or set(state) != {"_metadata"}:
        raise ValueError("it sets the state of something that is not a dictionary of tensors")
