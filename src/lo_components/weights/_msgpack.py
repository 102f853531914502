"""Nested maps of arrays in msgpack, as flax writes them.

Not the package `msgpack`: to find a key that comes twice, it makes lists as long as the lengths that a file claims, and
what it accepts beyond maps of arrays would have to be refused afterwards.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ._formats import text, to_array

_MAX_DEPTH = 16
_ARRAY_TYPE = 1  # flax's number of its extension; 2 is a complex number, 3 a scalar

# For each kind of value: what it is called, the lengths that its markers contain, and for other markers the number of
# bytes in which the length follows.
_Kind = tuple[str, dict[int, int], dict[int, int]]
_MAP: _Kind = "a map", {0x80 + n: n for n in range(16)}, {0xDE: 2, 0xDF: 4}
_STRING: _Kind = "a name", {0xA0 + n: n for n in range(32)}, {0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION: _Kind = "an array", {0xD4 + n: 2**n for n in range(5)}, {0xC7: 1, 0xC8: 2, 0xC9: 4}
_LIST: _Kind = "the parts or the shape of an array", {0x90 + n: n for n in range(16)}, {0xDC: 2, 0xDD: 4}
_SIZE: _Kind = "the size of an axis", {n: n for n in range(128)}, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_BYTES: _Kind = "the numbers of an array", {}, {0xC4: 1, 0xC5: 2, 0xC6: 4}


def read_msgpack(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in a msgpack object, named by the keys of the maps around them."""
    source = _Source(data)
    yield from _arrays(source, "", 1)
    source.finish()


class _Source:
    """Bytes that are read from the first to the last."""

    def __init__(self, data: bytes | memoryview):
        self._data, self._at = memoryview(data), 0

    def take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise ValueError("it ends before a value does")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def length(self, kind: _Kind) -> int:
        """The length in the header of a value that must be of this kind."""
        what, lengths, sizes = kind
        marker = self.number(1)
        if marker in sizes:
            return self.number(sizes[marker])
        if marker not in lengths:
            raise ValueError(f"it has the msgpack marker {marker:#04x} in place of {what}")
        return lengths[marker]

    def begins(self, kind: _Kind) -> bool:
        markers: list[Mapping[int, int]] = [kind[1], kind[2]]
        return self._at < len(self._data) and any(self._data[self._at] in known for known in markers)

    def finish(self) -> None:
        if self._at < len(self._data):
            raise ValueError(f"it has {len(self._data) - self._at} bytes after the end of a value")


def _arrays(source: _Source, prefix: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it has more than {_MAX_DEPTH} maps inside each other")
    for _ in range(source.length(_MAP)):
        name = prefix + text(bytes(source.take(source.length(_STRING))))
        if source.begins(_MAP):
            yield from _arrays(source, f"{name}/", depth + 1)
        else:
            yield name, _array(name, source)


def _array(name: str, source: _Source) -> np.ndarray:
    size = source.length(_EXTENSION)
    if (kind := source.number(1)) != _ARRAY_TYPE:
        raise ValueError(f"it has `{name[:80]}` as the msgpack extension {kind}, which is not an array")
    parts = _Source(source.take(size))
    if parts.length(_LIST) != 3:
        raise ValueError(f"it has `{name[:80]}` without a shape, a dtype and numbers")
    shape = tuple(parts.length(_SIZE) for _ in range(parts.length(_LIST)))
    dtype = text(bytes(parts.take(parts.length(_STRING))))
    array = to_array(name, dtype, shape, parts.take(parts.length(_BYTES)))
    parts.finish()
    return array
