"""Create states where their parameters lie."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .. import _tree


def sharded_like(state: PyTree[Array], param: Any) -> PyTree[Array]:
    """The state of one tensor, with the axes that it has in common with the tensor sharded alike."""
    traced = not _tree.concrete(param)
    sharding = jax.typeof(param).sharding if traced else getattr(param, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return state
    if AxisType.Manual in sharding.mesh.axis_types:
        # A zero that varies over the devices if the parameter does, whatever its values are.
        zero = jnp.sum(jnp.where(False, param, jnp.zeros((), param.dtype)), dtype=jnp.float32)
        state = jax.tree.map(lambda x: x + zero.astype(x.dtype), state)
    if traced and not any(sharding.spec):
        return state
    axes = [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]

    def placed(x: Array) -> Array:
        same = [None] * x.ndim
        if x.ndim == 1 + param.ndim:
            same[1:] = [axis if n == m else None for axis, n, m in zip(axes, x.shape[1:], param.shape, strict=True)]
        target = NamedSharding(sharding.mesh, PartitionSpec(*same))
        return jax.sharding.reshard(x, target) if traced else jax.device_put(x, target)

    return jax.tree.map(placed, state)
