"""Arrays, lists and strings from pickle files, without running the pickle."""

import dataclasses
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from .._pickle import Name, interpret
from ._files import parsing

_DTYPES = frozenset("u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 b1".split())
_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "_reconstruct" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
}


def read_pickle(path: Path, *keys: str) -> list[Any]:
    """The values of `keys` in a pickled dictionary of NumPy arrays, numbers, strings and lists.

    A pickle is a program for a stack machine that can call any function. This one has only the operations that build
    such values, handles the few names that arrays need itself, and calls nothing that a file names.
    """
    with parsing(path, "a pickle of arrays and lists"), path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # An image has at least 192 bytes, and its label and file name take a few operations.
            values = interpret(
                content, names=_NAMES, call=_call, set_state=_set_state, max_operations=10_000 + size // 32
            )
        if type(values) is not dict:
            raise ValueError("it does not contain a dictionary")
        missing = [key for key in keys if key not in values]
        if missing:
            raise ValueError(f"it has no `{missing[0]}`, only: {', '.join(values)[:200] or 'nothing'}")
        return [values[key].to_numpy() if isinstance(values[key], _Array) else values[key] for key in keys]


@dataclasses.dataclass(eq=False)
class _DType:
    code: str
    order: Any = "="


@dataclasses.dataclass(eq=False)
class _Array:
    shape: Any = None
    dtype: Any = None
    fortran_order: Any = False
    content: Any = None

    def to_numpy(self) -> np.ndarray:
        """The array, a view of the bytes that were read."""
        content = self.content.encode("latin-1") if isinstance(self.content, str) else self.content
        if not isinstance(self.dtype, _DType) or self.dtype.code not in _DTYPES:
            raise ValueError("it contains an array of Python objects, or of another unexpected type")
        if not isinstance(content, bytes | bytearray) or not isinstance(self.shape, tuple):
            raise ValueError("it contains a malformed array")
        dtype = np.dtype(self.dtype.code).newbyteorder(self.dtype.order if self.dtype.order in ("<", ">") else "=")
        valid = all(type(n) is int and n >= 0 for n in self.shape)
        if not valid or math.prod(self.shape) * dtype.itemsize != len(content):
            raise ValueError("the size of an array does not match its shape")
        return np.frombuffer(content, dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case Name("dtype"), (str() as code, *_):
            return _DType(code)
        case Name("_reconstruct"), _:
            return _Array()
        case Name("_frombuffer"), (content, dtype, shape, order):
            return _Array(shape, dtype, order == "F", content)
        case Name("encode"), (str() as text, "latin1"):
            return text  # the bytes of an array, which `to_numpy` encodes
    raise ValueError("it calls a function that arrays do not need")


def _set_state(state: Any, target: Any) -> None:
    match target, state:
        case _Array(), (_, shape, dtype, fortran_order, content):
            target.shape, target.dtype, target.fortran_order, target.content = shape, dtype, fortran_order, content
        case _DType(), (_, str() as order, *_):
            target.order = order
        case _:
            raise ValueError("it sets the state of something that is not an array")
