"""What the readers of all formats share. They raise `ValueError`s that go on after the name of the file: "it ..."."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

_MAX_NAME = 500
_MAX_AXES = 32


@functools.cache
def dtypes() -> dict[str, np.dtype]:
    """The dtypes that arrays of published weights may have, by name."""
    integers = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    return {name: np.dtype(name) for name in ("float16", "bfloat16", "float32", "float64", *integers)}


def to_array(name: str, dtype: Any, shape: tuple[Any, ...], data: bytes | memoryview | bytearray) -> np.ndarray:
    """An array of little-endian bytes, after a check that they are as many as dtype and shape say."""
    if not isinstance(dtype, str) or dtype not in dtypes():
        raise ValueError(f"it has `{name[:80]}` in the dtype {str(dtype)[:40]!r}, which is not known")
    if len(shape) > _MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"it has `{name[:80]}` with a shape that no array has")
    if math.prod(shape) * dtypes()[dtype].itemsize != len(data):
        expected = f"{dtype}{list(shape)}"
        expected = expected if len(expected) <= 80 else f"{expected[:77]}..."
        raise ValueError(f"it has `{name[:80]}` with {len(data)} bytes, which are not those of {expected}")
    return np.frombuffer(data, dtypes()[dtype].newbyteorder("<")).astype(dtypes()[dtype]).reshape(shape)


def by_name(named: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in a dictionary, after a check of their names."""
    arrays: dict[str, np.ndarray] = {}
    for name, array in named:
        if len(name) > _MAX_NAME:
            raise ValueError(f"it has a name of more than {_MAX_NAME} characters, which begins with `{name[:80]}`")
        if not name.isprintable():
            raise ValueError(f"it has a name with characters that cannot be printed, {name[:80]!r}")
        if name in arrays:
            raise ValueError(f"it has two arrays called `{name}`")
        arrays[name] = array
    if not arrays:
        raise ValueError("it has no arrays")
    return arrays


def text(data: bytes) -> str:
    """UTF-8, decoded."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it has a name that is not text") from None
