"""Arrays, lists and strings out of pickle files, without running them."""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from pickletools import genops
from typing import Any, NamedTuple

import numpy as np

from ._files import naming

_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_DTYPES = frozenset("u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 b1".split())


def read_pickle(path: Path, *names: str) -> list[Any]:
    """The values under `names` in a pickled dictionary of NumPy arrays, numbers, strings and lists.

    A pickle is a program for a stack machine that can call anything. This is a smaller machine: it knows the
    operations that build such values and a few names, for which it runs code of its own. Nothing is imported or called
    for a file, nothing recurses, and what is allocated is bounded by the file's size.
    """
    with naming(path, "a pickle of arrays and lists"), path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Labels and names take a few operations for each image, of at least 192 bytes.
            values = _run(content, limit=10_000 + size // 32)
        if type(values) is not dict:
            raise ValueError("it does not hold a dictionary")
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"it has no `{missing[0]}`, only: {', '.join(values)[:200] or 'nothing'}")
        return [values[name].to_numpy() if isinstance(values[name], _Array) else values[name] for name in names]


class _Name(NamedTuple):
    """Stands for what a pickle refers to by module and name."""

    name: str


class _DType:
    code: Any = None
    order: Any = "="


class _Array:
    dtype: Any = None
    shape: Any = None
    fortran: Any = False
    content: Any = None

    def to_numpy(self) -> np.ndarray:
        """A view of the bytes that were read."""
        content = self.content.encode("latin-1") if isinstance(self.content, str) else self.content
        if not isinstance(self.dtype, _DType) or self.dtype.code not in _DTYPES:
            raise ValueError("it holds an array of Python objects, or of another unexpected type")
        if not isinstance(content, bytes | bytearray) or not isinstance(self.shape, tuple):
            raise ValueError("it holds a malformed array")
        order = self.dtype.order if self.dtype.order in ("<", ">") else "="
        dtype = np.dtype(self.dtype.code).newbyteorder(order)
        if any(type(n) is not int or n < 0 for n in self.shape) or math.prod(self.shape) * dtype.itemsize != len(
            content
        ):
            raise ValueError("the size of an array is not what its shape says")
        return np.frombuffer(content, dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _run(content: mmap.mmap, *, limit: int) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to(start: int) -> list[Any]:
        if start < 0:
            raise ValueError("it takes more from its stack than there is")
        items = stack[start:]
        del stack[start:]
        return items

    steps: Iterator[tuple[Any, Any, Any]] = genops(content)  # pyright: ignore[reportArgumentType]
    for count, (operation, argument, _) in enumerate(steps):
        if count > limit:
            raise ValueError("it has far more operations than a file of its size needs")
        match operation.name:
            case name if name in _VALUES:
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
                stack.append(tuple(pop_to(len(stack) - int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(pop_to(marks.pop())))
            case "APPEND":
                _extend(stack, pop_to(len(stack) - 1))
            case "APPENDS":
                _extend(stack, pop_to(marks.pop()))
            case "SETITEM":
                _set_items(stack, pop_to(len(stack) - 2))
            case "SETITEMS":
                _set_items(stack, pop_to(marks.pop()))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_known(*pop_to(len(stack) - 2)))
            case "REDUCE":
                stack.append(_call(*pop_to(len(stack) - 2)))
            case "BUILD":
                _set_state(stack[-2], stack.pop())
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"it asks for the operation {name}")


def _extend(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not list:
        raise ValueError("it appends to something that is not a list")
    stack[-1].extend(items)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    keys = items[::2]
    # Other keys are not needed, and hashing a deep tuple recurses.
    if type(stack[-1]) is not dict or not all(isinstance(key, str) for key in keys):
        raise ValueError("it holds a dictionary whose keys are not strings")
    stack[-1].update(zip(keys, items[1::2], strict=True))


_KNOWN = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "_reconstruct" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
}


def _known(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("it asks for a name that is not text")
    if (module, name) not in _KNOWN:
        raise ValueError(f"it asks for `{module[:80]}.{name[:80]}`")
    return _Name(_KNOWN[module, name])


def _call(function: Any, arguments: Any) -> Any:
    array = _Array()
    match function, arguments:
        case _Name("dtype"), (str() as code, *_):
            dtype = _DType()
            dtype.code = code
            return dtype
        case _Name("_reconstruct"), _:
            return array
        case _Name("_frombuffer"), (content, dtype, shape, order):
            array.content, array.dtype, array.shape, array.fortran = content, dtype, shape, order == "F"
            return array
        case _Name("encode"), (str() as text, "latin1"):
            return text  # the bytes of an array, which `to_numpy` encodes once
    raise ValueError("it calls something that is not called for arrays")


def _set_state(target: Any, state: Any) -> None:
    match target, state:
        case _Array(), (_, shape, dtype, fortran, content):
            target.shape, target.dtype, target.fortran, target.content = shape, dtype, fortran, content
        case _DType(), (_, str() as order, *_):
            target.order = order
        case _:
            raise ValueError("it sets the state of something that is not an array")
