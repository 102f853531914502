"""Compute small tensors together, so that the time to trace and compile does not grow with their number."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from .. import _tree
from ._pipeline import Pipeline

# Vectors up to this length are padded to the longest of them. Longer ones may be sharded, which padding would undo.
_SHORT = 2**8


class Tensor(NamedTuple):
    """The arrays of one tensor that a pipeline takes, with at least one axis."""

    grad: Float[Array, "*shape"]
    states: PyTree[Array]
    param: Float[Array, "*shape"]
    deltas: Float[Array, "workers *shape"] | None
    controls: Float[Array, " k"] | None = None


class Context(NamedTuple):
    """The inputs that all tensors have in common."""

    step: Int[Array, ""]
    num_steps: Int[Array, ""] | None
    loss: Float[Array, ""] | None


def grouped(pipeline: Pipeline, tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of tensors to compute together: small ones of one shape, and short vectors."""
    pointwise = pipeline.features.pointwise and pipeline.step_rule.pointwise
    padded = pointwise and all(a.pointwise_on_vectors for a in pipeline.accumulators)
    padded = padded and all(transform.padding for transform in pipeline.transforms)
    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        shape, size = tensor.param.shape, tensor.param.size
        if size == 0 or size >= _tree.BLOCKED_FROM:
            key = i  # stacking a large tensor would cost more than compiling it
        else:
            short = padded and len(shape) == 1 and size <= _SHORT
            key = (None if short else shape, *map(_kind, jax.tree.leaves(tensor)))
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _kind(x: Array) -> tuple:
    """What arrays must have in common, besides their shape, to be stacked."""
    kind = jax.typeof(x)
    return kind.dtype, kind.sharding


def update_group(pipeline: Pipeline, tensors: list[Tensor], context: Context) -> list[tuple[Array, PyTree]]:
    """The update and the next states of each tensor."""

    def shardings(mesh: jax.sharding.Mesh) -> PyTree:
        results = [(tensor.param, tensor.states) for tensor in tensors]
        return jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), results)

    # Results are sharded like what they replace.
    return _with_automatic_axes(_updated, (pipeline, tensors, context), shardings)


def map_group(fn: Callable[[Tensor, Int[Array, ""] | None], Array], tensors: list[Tensor]) -> Array:
    """A function of each tensor and its length, if it is padded; the results in one array."""

    def mapped(tensors: list[Tensor]) -> Array:
        if len(tensors) == 1:
            return fn(tensors[0], None)[None]
        return jax.vmap(fn)(*_stacked(tensors))

    return _with_automatic_axes(mapped, (tensors,), lambda mesh: NamedSharding(mesh, PartitionSpec()))


def _with_automatic_axes(fn: Callable, args: tuple, shardings: Callable[[Any], PyTree]) -> Any:
    """A function whose results have the given shardings over explicit axes; the compiler shards everything between."""
    explicit = [kind for x in jax.tree.leaves(args) if eqx.is_array(x) and any((kind := jax.typeof(x).sharding).spec)]
    if not explicit:
        return fn(*args)
    mesh = explicit[0].mesh
    names = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    )
    arrays, rest = eqx.partition(args, eqx.is_array)
    automatic: Any = jax.sharding.auto_axes(
        lambda x: fn(*eqx.combine(x, rest)), axes=names, out_sharding=shardings(mesh)
    )
    return automatic(arrays)


def _updated(pipeline: Pipeline, tensors: list[Tensor], context: Context) -> list[tuple[Array, PyTree]]:
    if len(tensors) == 1:
        return [_update(pipeline, tensors[0], context)]
    stacked, counted = _stacked(tensors)
    results = jax.vmap(lambda tensor, length: _update(pipeline, tensor, context, length))(stacked, counted)
    # Hiding the indices from the compiler makes all unstacking alike, so it is compiled once.
    indices = [jnp.asarray(i, jnp.int32) for i in range(len(tensors))]
    results, indices = jax.lax.optimization_barrier((results, indices))

    def result(i: Int[Array, ""], tensor: Tensor) -> tuple[Array, PyTree]:
        return jax.tree.map(lambda out, like: _entry(out, i, like.shape), results, (tensor.param, tensor.states))

    return [result(i, tensor) for i, tensor in zip(indices, tensors, strict=True)]


def _stacked(tensors: list[Tensor]) -> tuple[Tensor, Int[Array, " tensors"] | None]:
    """The tensors in one, and their lengths if some are padded."""
    lengths = [tensor.param.shape[0] for tensor in tensors]
    longest = tensors[lengths.index(max(lengths))]
    stacked = jax.tree.map(lambda like, *xs: jnp.stack([_padded(x, like.shape) for x in xs]), longest, *tensors)
    counted = None if min(lengths) == max(lengths) else jnp.asarray(lengths, jnp.int32)
    # Barriers, here and before unstacking, lest XLA fuse the arithmetic with both, and compile it once for each tensor.
    return jax.lax.optimization_barrier(stacked), counted


def _update(
    pipeline: Pipeline, tensor: Tensor, context: Context, length: Int[Array, ""] | None = None
) -> tuple[Array, PyTree]:
    grad, states, param, deltas, controls = tensor
    return pipeline.update(grad, states, param, deltas=deltas, controls=controls, **context._asdict(), length=length)


def _padded(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape, strict=True)])


def _entry(stacked: Array, i: Int[Array, ""], shape: tuple[int, ...]) -> Array:
    """Entry `i`, without padding."""
    zeros = [np.int32(0)] * len(shape)
    return jax.lax.dynamic_slice(stacked, (i, *zeros), (1, *shape), allow_negative_indices=False).reshape(shape)
