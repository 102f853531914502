"""Evaluate large tensors in blocks that fit in the cache (measured by benchmarks/update.py)."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..accumulators import TensorView
from ..features import AbstractFeature, Channels

# Elements per block. On CPUs a block fits in the cache; on accelerators each block costs several kernel launches, so
# blocks only bound the memory of intermediate results.
SIZE_ON_CPUS = 2**16
SIZE_ELSEWHERE = 2**24
# Into how many parts an axis is divided at most. A tensor that is sharded over as many devices, along any axis, is
# evaluated where it lies: each device computes its parts of every block.
PARTS_ON_CPUS = 8
PARTS_ELSEWHERE = 64

MeanSquares = list[Float[Array, "..."] | None]
Starts = list[Int[Array, ""]]


class Blocks:
    """How a tensor is cut into blocks.

    Each axis is divided into equal parts, and a block takes `taken` consecutive entries of every part. If the size of
    a part is not a multiple of `taken`, the last block overlaps the one before.
    """

    def __init__(self, shape: tuple[int, ...], block_size: int, most_parts: int):
        """**Arguments:**

        - `shape`: of the tensor.
        - `block_size`: the number of elements in a block, roughly.
        - `most_parts`: into how many parts an axis is divided at most, a power of 2.
        """
        parts = [math.gcd(n, most_parts) for n in shape]
        while 1 < math.prod(parts) > block_size // 4:  # a block has at least one element of every part
            shortest = min((axis for axis, p in enumerate(parts) if p > 1), key=lambda axis: shape[axis])
            parts[shortest] //= 2
        self.parts = tuple(parts)
        self.sizes = tuple(n // p for n, p in zip(shape, self.parts, strict=True))
        taken = [1] * len(shape)
        for axis in reversed(range(len(shape))):  # whole rows if possible, since they are contiguous
            others = math.prod(taken) * math.prod(self.parts)
            taken[axis] = _divisor(self.sizes[axis], max(1, block_size // others))
        self.taken = tuple(taken)
        self.counts = tuple(-(-n // t) for n, t in zip(self.sizes, taken, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def starts(self, block: Int[Array, ""]) -> tuple[Starts, Starts]:
        """The first entry of every part that a block takes, and how many of these entries earlier blocks take as well.

        Both along each axis.
        """
        counts = jnp.unravel_index(block, self.counts)
        firsts = [i.astype(jnp.int32) * taken for i, taken in zip(counts, self.taken, strict=True)]
        limits = [size - taken for size, taken in zip(self.sizes, self.taken, strict=True)]
        starts = [jnp.minimum(first, limit) for first, limit in zip(firsts, limits, strict=True)]
        return starts, [first - start for first, start in zip(firsts, starts, strict=True)]

    def view(self, view: TensorView, starts: Starts) -> TensorView:
        """The view of a block."""
        tensors = [self._take(x, starts) for x in view.tensors()]
        pairs = [zip(x.shape[1::2], x.shape[2::2], strict=True) for x in tensors]
        return view.with_tensors(
            [x.reshape(x.shape[0], *map(math.prod, p)) for x, p in zip(tensors, pairs, strict=True)]
        )

    def _take(self, x: Float[Array, "c *#shape"], starts: Starts) -> Float[Array, "c *#parts_and_taken"]:
        """What a block takes of `x`, with two axes in place of each: one for the parts and one for their entries."""
        x = self._divided(x)
        for axis, (start, taken) in enumerate(zip(starts, self.taken, strict=True)):
            if taken < x.shape[2 * axis + 2]:
                x = jax.lax.dynamic_slice_in_dim(x, start, taken, 2 * axis + 2)
        return x

    def _divided(self, x: Float[Array, "c *#shape"]) -> Float[Array, "c *#parts_and_entries"]:
        pairs = [(1, 1) if n == 1 else (p, n // p) for n, p in zip(x.shape[1:], self.parts, strict=True)]
        return x.reshape(x.shape[0], *itertools.chain(*pairs))

    def squares(self, x: Float[Array, "c *#block"], repeated: Starts) -> Float[Array, "c *#parts_and_taken"]:
        """The squares of a block, times the number of elements that each stands for, 0 if an earlier block takes it."""
        x = self._divided(x * x)
        for axis, (size, taken) in enumerate(zip(self.sizes, self.taken, strict=True)):
            new = jnp.arange(taken) >= repeated[axis]
            if x.shape[2 * axis + 1 : 2 * axis + 3] == (1, 1):
                x = x * (self.parts[axis] * (taken if size % taken == 0 else jnp.sum(new, dtype=jnp.float32)))
            elif size % taken:
                x = jnp.where(new.reshape(-1, *(1,) * (x.ndim - 2 * axis - 3)), x, 0.0)
        return x

    def put(self, values: Float[Array, "*block"], x: Float[Array, "*parts_and_sizes"], starts: Starts):
        """`x` with `values` in the place from which `view` takes them."""
        values = values.reshape(*itertools.chain(*zip(self.parts, self.taken, strict=True)))
        zero = jnp.zeros((), jnp.int32)
        return jax.lax.dynamic_update_slice(x, values, [*itertools.chain(*((zero, start) for start in starts))])


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` up to `most`, or `most` itself where that would be less than half of it."""
    if most >= size:
        return size
    pairs = ((n, size // n) for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    divisor = max(n for n in itertools.chain(*pairs) if n <= most)
    return divisor if 2 * divisor >= most else most


def mean_squares(features: AbstractFeature, view: TensorView, blocks: Blocks) -> MeanSquares:
    """`mean_square` of the channels of the whole tensor, added up over blocks."""

    def of_block(i: Int[Array, ""]) -> MeanSquares:
        starts, repeated = blocks.starts(i)
        channels = features(blocks.view(view, starts))
        return _sums_of_entries(
            [None if c.mean_square is None else blocks.squares(c.values, repeated) for c in channels]
        )

    def add(i: Int[Array, ""], sums: MeanSquares) -> MeanSquares:
        return jax.tree.map(jnp.add, sums, of_block(i))

    zeros = jax.tree.map(_zeros_like, of_block(jnp.zeros((), jnp.int32)))
    sums = jax.lax.fori_loop(0, len(blocks), add, zeros)
    # Parts are added up after the loop, as they may lie on several devices.
    return jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(1, x.ndim))) / view.param.size, sums)


def _sums_of_entries(groups: list[Float[Array, "_ ..."] | None]) -> MeanSquares:
    """The sums over the entries of each part, `[c, *#parts]`."""
    sums: MeanSquares = [None] * len(groups)
    shapes = [None if x is None else x.shape[1:] for x in groups]
    for shape in dict.fromkeys(filter(None, shapes)):
        same = [i for i, other in enumerate(shapes) if other == shape]
        # XLA vectorizes sums of slices on CPUs, even of slices that are not in memory yet, but not sums along an axis.
        axis = max(range(2, len(shape) + 1, 2), key=lambda axis: math.gcd(shape[axis - 1], 8))
        slices = [
            jnp.split(x, math.gcd(x.shape[axis], 8), axis) for x in groups if x is not None and x.shape[1:] == shape
        ]
        partial = jnp.concatenate([functools.reduce(jnp.add, s) for s in slices])
        total = jnp.sum(jax.lax.optimization_barrier(partial), axis=tuple(range(2, partial.ndim, 2)))
        ends = np.cumsum([s[0].shape[0] for s in slices])[:-1]
        for i, part in zip(same, jnp.split(total, ends), strict=True):
            sums[i] = part
    return sums


def with_mean_squares(channels: tuple[Channels, ...], means: MeanSquares) -> tuple[Channels, ...]:
    """The channels of a block, normalized with means over the whole tensor."""
    return tuple(Channels(c.values, mean, c.eps) for c, mean in zip(channels, means, strict=True))


def map_blocks(fn: Callable[[TensorView], Float[Array, "*block"]], view: TensorView, blocks: Blocks):
    """`fn` of the view, evaluated block by block."""

    def step(i: Int[Array, ""], out: Float[Array, "*parts_and_sizes"]) -> Float[Array, "*parts_and_sizes"]:
        starts, _ = blocks.starts(i)
        # Without the barrier, XLA fuses the arithmetic into the write, element by element, which is slower.
        return blocks.put(jax.lax.optimization_barrier(fn(blocks.view(view, starts))), out, starts)

    out = _zeros_like(functools.reduce(jnp.add, (x[0] for x in view.tensors())))
    out = out.reshape(*itertools.chain(*zip(blocks.parts, blocks.sizes, strict=True)))
    return jax.lax.fori_loop(0, len(blocks), step, out).reshape(view.param.shape)


def _zeros_like(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros that are sharded, or vary over the devices of a manual mesh, as `x` does. `x` itself is not computed."""
    return jnp.where(False, x, jnp.zeros((), x.dtype))
