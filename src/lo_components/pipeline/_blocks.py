"""Evaluate large tensors in blocks of rows that fit in the cache (measured by benchmarks/update.py)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import _tree
from ..accumulators import TensorView
from ..features import AbstractFeature, Channels

# The least number of elements in a block.
_BLOCK_SIZE = 2**15

SquareSums = list[tuple[Float[Array, " c"] | None, int]]


def rows_per_block(shape: tuple[int, ...]) -> int:
    """The number of rows of a tensor to evaluate at a time; all if it is small."""
    size = math.prod(shape)
    if size < _tree.BLOCKED_FROM:
        return shape[0]
    return min(shape[0], -(-_BLOCK_SIZE * shape[0] // size))


def square_sums(features: AbstractFeature, view: TensorView, rows: int) -> SquareSums:
    """`square_sum` and `count` of the channels of the whole tensor, accumulated over blocks of rows.

    Channels that are constant along the rows count once per block, both in the sum and in the count.
    """
    num_blocks, rest = divmod(view.param.shape[0], rows)
    like = jax.eval_shape(lambda v: features(v), view.rows(jnp.asarray(0), rows))
    counts = [num_blocks * c.count for c in like]
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), [c.square_sum for c in like])
    if not jax.tree.leaves(sums):
        return list(zip(sums, counts, strict=True))

    def add(sums, part: tuple[Channels, ...]):
        return jax.tree.map(jnp.add, sums, [c.square_sum for c in part])

    def accumulate(i: Int[Array, ""], sums):
        return add(sums, features(view.rows(i * rows, rows)))

    sums = jax.lax.fori_loop(0, num_blocks, accumulate, sums)
    if rest:
        last = features(view.rows(jnp.asarray(num_blocks * rows), rest))
        sums, counts = add(sums, last), [n + c.count for n, c in zip(counts, last, strict=True)]
    return list(zip(sums, counts, strict=True))


def with_square_sums(channels: tuple[Channels, ...], sums: SquareSums) -> tuple[Channels, ...]:
    """The channels of some rows, normalized with sums over the whole tensor."""
    return tuple(Channels(c.values, *s, c.eps) for c, s in zip(channels, sums, strict=True))


def map_rows(
    fn: Callable[[TensorView], Float[Array, "rows ..."]], view: TensorView, rows: int
) -> Float[Array, "*shape"]:
    """`fn` of the view, evaluated `rows` rows at a time."""
    shape = view.param.shape
    num_blocks, rest = divmod(shape[0], rows)

    def evaluated(start: Int[Array, ""], size: int) -> Float[Array, "rows ..."]:
        # Without the barrier, XLA fuses the arithmetic into the write, element by element, which is slower.
        return jax.lax.optimization_barrier(fn(view.rows(start, size)))

    def block(i: Int[Array, ""], out: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.lax.dynamic_update_slice_in_dim(out, evaluated(i * rows, rows), i * rows, 0)

    out = jax.lax.fori_loop(0, num_blocks, block, jnp.zeros(shape, jnp.float32))
    if not rest:
        return out
    start = num_blocks * rows
    return out.at[start:].set(evaluated(jnp.asarray(start), rest))
