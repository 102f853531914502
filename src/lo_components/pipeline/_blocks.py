"""Evaluate large tensors in blocks that fit in the cache (measured by benchmarks/update.py)."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..accumulators import TensorView
from ..features import AbstractFeature, Channels

# Elements per block. On CPUs a block fits in the cache; on accelerators each block costs several kernel launches, so
# blocks only bound the memory of intermediate results.
SIZE_ON_CPUS = 2**15
SIZE_ELSEWHERE = 2**24
# Into how many parts an axis is divided at most. A tensor that is sharded over as many devices, along any axis, is
# evaluated where it lies: each device computes its parts of every block.
_MOST_PARTS = 8

MeanSquares = list[Float[Array, "..."] | None]
Starts = list[Int[Array, ""]]


class Blocks:
    """How a tensor is cut into blocks.

    Each axis is divided into equal parts, and a block takes `taken` consecutive entries of every part. If the size of
    a part is not a multiple of `taken`, the last block overlaps the one before.
    """

    def __init__(self, shape: tuple[int, ...], block_size: int):
        """**Arguments:**

        - `shape`: of the tensor.
        - `block_size`: the number of elements in a block, roughly.
        """
        self.parts = tuple(math.gcd(n, _MOST_PARTS) for n in shape)
        self.sizes = tuple(n // p for n, p in zip(shape, self.parts, strict=True))
        taken = [1] * len(shape)
        for axis in reversed(range(len(shape))):  # whole rows if possible, since they are contiguous
            others = math.prod(taken) * math.prod(self.parts)
            taken[axis] = _divisor(self.sizes[axis], max(1, block_size // others))
        self.taken = tuple(taken)
        self.counts = tuple(-(-n // t) for n, t in zip(self.sizes, taken, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def starts(self, block: Int[Array, ""]) -> Starts:
        """The first entry of every part that a block takes, along each axis."""
        indices = zip(jnp.unravel_index(block, self.counts), self.taken, self.sizes, strict=True)
        return [jnp.minimum(i.astype(jnp.int32) * taken, n - taken) for i, taken, n in indices]

    def new(self, block: Int[Array, ""], starts: Starts) -> Bool[Array, "*taken"] | None:
        """Which entries that a block takes of a part belong to no earlier block; `None` for all."""
        if all(n % taken == 0 for n, taken in zip(self.sizes, self.taken, strict=True)):
            return None
        indices = zip(jnp.unravel_index(block, self.counts), starts, self.taken, strict=True)
        along_axes = [start + jnp.arange(taken) >= i.astype(jnp.int32) * taken for i, start, taken in indices]
        return jnp.all(jnp.stack(jnp.meshgrid(*along_axes, indexing="ij")), axis=0)

    def take(self, x: Float[Array, "c *#shape"], starts: Starts) -> Float[Array, "c *#parts_and_taken"]:
        """What a block takes of `x`, with two axes in place of each: one for the parts and one for their entries."""
        pairs = [(1, 1) if n == 1 else (p, n // p) for n, p in zip(x.shape[1:], self.parts, strict=True)]
        x = x.reshape(x.shape[0], *itertools.chain(*pairs))
        for axis, (start, taken) in enumerate(zip(starts, self.taken, strict=True)):
            if taken < x.shape[2 * axis + 2]:
                x = jax.lax.dynamic_slice_in_dim(x, start, taken, 2 * axis + 2)
        return x

    def put(self, values: Float[Array, "*block"], x: Float[Array, "*parts_and_sizes"], starts: Starts):
        """`x` with `values` in the place from which `take` takes them."""
        values = values.reshape(*itertools.chain(*zip(self.parts, self.taken, strict=True)))
        zero = jnp.zeros((), jnp.int32)
        return jax.lax.dynamic_update_slice(x, values, [*itertools.chain(*((zero, start) for start in starts))])


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` up to `most`, or `most` itself where that would be less than half of it."""
    if most >= size:
        return size
    divisor = next(n for n in range(most, 0, -1) if size % n == 0)
    return divisor if 2 * divisor >= most else most


def mean_squares(features: AbstractFeature, view: TensorView, blocks: Blocks) -> MeanSquares:
    """`mean_square` of the channels of the whole tensor, added up over blocks."""

    def of_block(i: Int[Array, ""]) -> MeanSquares:
        starts = blocks.starts(i)
        new = blocks.new(i, starts)

        def of_part(*tensors: Float[Array, "_ ..."]) -> MeanSquares:
            part = dataclasses.replace(view.with_tensors(tensors), counted=new)
            return [channels.mean_square for channels in features(part)]

        # Parts are summed up after the loop, as they may lie on several devices.
        for _ in blocks.parts:
            of_part = jax.vmap(of_part)
        return of_part(*(_parts_first(blocks.take(x, starts), blocks.parts) for x in view.tensors()))

    def add(i: Int[Array, ""], sums: MeanSquares) -> MeanSquares:
        return jax.tree.map(jnp.add, sums, of_block(i))

    zeros = jax.tree.map(_zeros_like, of_block(jnp.zeros((), jnp.int32)))
    sums = jax.lax.fori_loop(0, len(blocks), add, zeros)
    return jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(len(blocks.parts)))), sums)


def _parts_first(x: Float[Array, "c *#parts_and_taken"], parts: tuple[int, ...]) -> Float[Array, "..."]:
    x = jnp.moveaxis(x, range(1, x.ndim, 2), range(len(parts)))
    return jnp.broadcast_to(x, (*parts, *x.shape[len(parts) :]))


def with_mean_squares(channels: tuple[Channels, ...], means: MeanSquares) -> tuple[Channels, ...]:
    """The channels of a block, normalized with means over the whole tensor."""
    return tuple(Channels(c.values, mean, c.eps) for c, mean in zip(channels, means, strict=True))


def map_blocks(fn: Callable[[TensorView], Float[Array, "*block"]], view: TensorView, blocks: Blocks):
    """`fn` of the view, evaluated block by block."""

    def of_block(starts: Starts) -> Float[Array, "*block"]:
        tensors = [blocks.take(x, starts) for x in view.tensors()]
        merged = [
            x.reshape(x.shape[0], *map(math.prod, zip(x.shape[1::2], x.shape[2::2], strict=True))) for x in tensors
        ]
        return fn(view.with_tensors(merged))

    def step(i: Int[Array, ""], out: Float[Array, "*parts_and_sizes"]) -> Float[Array, "*parts_and_sizes"]:
        starts = blocks.starts(i)
        # Without the barrier, XLA fuses the arithmetic into the write, element by element, which is slower.
        return blocks.put(jax.lax.optimization_barrier(of_block(starts)), out, starts)

    out = _zeros_like(functools.reduce(jnp.add, (x[0] for x in view.tensors())))
    out = out.reshape(*itertools.chain(*zip(blocks.parts, blocks.sizes, strict=True)))
    return jax.lax.fori_loop(0, len(blocks), step, out).reshape(view.param.shape)


def _zeros_like(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros that are sharded, or vary over the devices of a manual mesh, as `x` does. `x` itself is not computed."""
    return jnp.where(False, x, jnp.zeros((), x.dtype))
