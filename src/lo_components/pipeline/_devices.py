"""Create states where their parameters lie."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .. import _tree
from ._pipeline import Pipeline


def init_like(pipeline: Pipeline, param: Any) -> PyTree[Array]:
    """The state of one tensor, with the axes that it has in common with the tensor sharded alike."""
    traced = not _tree.concrete(param)
    sharding = jax.typeof(param).sharding if traced else getattr(param, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return pipeline.init(param)

    def place(x: Any) -> NamedSharding:
        return _alike(sharding, param.shape, x.shape)

    if not traced:
        # Each device creates its part: the whole state may be too large for one.
        places, treedef = jax.tree.flatten(jax.tree.map(place, jax.eval_shape(pipeline.init, param)))
        arrays, rest = eqx.partition(pipeline, eqx.is_array)
        return treedef.unflatten(_compiled(rest, tuple(places))(arrays, param))
    state = pipeline.init(param)
    if AxisType.Manual in sharding.mesh.axis_types:
        # A zero that varies over the devices if the parameter does, whatever its values are.
        zero = jnp.sum(jnp.where(False, param, jnp.zeros((), param.dtype)), dtype=jnp.float32)
        state = jax.tree.map(lambda x: x + zero.astype(x.dtype), state)
    if not any(sharding.spec):
        return state
    return jax.tree.map(lambda x: jax.sharding.reshard(x, place(x)), state)


def _alike(sharding: NamedSharding, shape: tuple[int, ...], state_shape: tuple[int, ...]) -> NamedSharding:
    """How an array of the state is sharded, for a parameter of `shape`."""
    axes: list = [None] * len(state_shape)
    if len(state_shape) == 1 + len(shape):
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        axes[1:] = [axis if n == m else None for axis, n, m in zip(spec, state_shape[1:], shape, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


@functools.lru_cache
def _compiled(rest: Pipeline, places: tuple[NamedSharding, ...]) -> Callable:
    """A function that creates the arrays of one state at their places, compiled once for each shape."""

    def init(arrays, param):
        return jax.tree.leaves(eqx.combine(arrays, rest).init(param))

    return jax.jit(init, out_shardings=list(places))
