"""Read arrays, lists and strings from pickle files without running the pickle.

Not `pickle.Unpickler` with `find_class`: that runs no code either, but a key made of a million nested tuples crashes
Python, 300 bytes take forever to hash, and 9 bytes with a large memo index allocate 4 GB.
"""

import dataclasses
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from pickletools import genops
from typing import Any, NamedTuple

import numpy as np

from ._files import parsing

_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
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

    A pickle is a program for a stack machine that can call any function. This interpreter has only the operations that
    build such values, and handles the few names that arrays need itself. It imports and calls nothing that a file
    names, does not recurse, and the file's size bounds its allocations and the number of operations.
    """
    with parsing(path, "a pickle of arrays and lists"), path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # An image has at least 192 bytes, and its label and file name take a few operations.
            values = _interpret(content, max_operations=10_000 + size // 32)
        if type(values) is not dict:
            raise ValueError("it does not contain a dictionary")
        missing = [key for key in keys if key not in values]
        if missing:
            raise ValueError(f"it has no `{missing[0]}`, only: {', '.join(values)[:200] or 'nothing'}")
        return [values[key].to_numpy() if isinstance(values[key], _Array) else values[key] for key in keys]


class _Name(NamedTuple):
    """The function or class that a pickle refers to."""

    name: str


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


def _interpret(content: mmap.mmap, *, max_operations: int) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int | None = None) -> list[Any]:
        """The last `count` values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise ValueError("it takes more values from its stack than there are")
        values = stack[start:]
        del stack[start:]
        return values

    operations: Iterator[tuple[Any, Any, Any]] = genops(content)  # pyright: ignore[reportArgumentType]
    for count, (operation, argument, _) in enumerate(operations):
        if count > max_operations:
            raise ValueError("it has far more operations than a file of its size needs")
        match operation.name:
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(pop()))
            case "APPEND" | "APPENDS" as name:
                _extend(pop(1 if name == "APPEND" else None), stack[-1])
            case "SETITEM" | "SETITEMS" as name:
                _set_items(pop(2 if name == "SETITEM" else None), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_find_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_find_name(*pop(2)))
            case "REDUCE":
                stack.append(_call(*pop(2)))
            case "BUILD":
                _set_state(pop(1)[0], stack[-1])
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"it asks for the operation {name}")


def _extend(values: list[Any], target: Any) -> None:
    if type(target) is not list:
        raise ValueError("it appends to something that is not a list")
    target.extend(values)


def _set_items(items: list[Any], target: Any) -> None:
    keys = items[::2]
    # No other keys are needed, and hashing nested tuples recurses.
    if type(target) is not dict or not all(isinstance(key, str) for key in keys):
        raise ValueError("it contains a dictionary whose keys are not strings")
    target.update(zip(keys, items[1::2], strict=True))


def _find_name(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("it asks for a name that is not text")
    if (module, name) not in _NAMES:
        raise ValueError(f"it asks for `{module[:80]}.{name[:80]}`")
    return _Name(_NAMES[module, name])


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name("dtype"), (str() as code, *_):
            return _DType(code)
        case _Name("_reconstruct"), _:
            return _Array()
        case _Name("_frombuffer"), (content, dtype, shape, order):
            return _Array(shape, dtype, order == "F", content)
        case _Name("encode"), (str() as text, "latin1"):
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
