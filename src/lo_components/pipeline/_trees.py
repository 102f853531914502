"""Apply one pipeline to every tensor of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._types import Params
from ..accumulators import TensorView
from ._devices import init_like
from ._groups import Context, Tensor, grouped, map_group, update_group
from ._pipeline import Pipeline


class PipelineState(NamedTuple):
    """State of a learner that applies a [`lo_components.pipeline.Pipeline`][] to every tensor.

    As in optax, each array of a state is in the structure of the parameters, so tools for optax's states work:
    `optax.tree.get(state, "step")`, `optax.tree_map_params`, `flax.serialization`, `flax.nnx.Optimizer`.

    **Arguments:**

    - `step`: the number of updates made.
    - `accumulators`: the state of each accumulator, with a tree in the structure of the parameters in place of each
        array. The arrays of [`lo_components.accumulators.Momentum`][], for instance, are `[c, *shape]` for parameters
        `[*shape]`, so a parameter that is sharded by `PartitionSpec(*axes)` has moments sharded by
        `PartitionSpec(None, *axes)`.
    """

    step: Int[Array, ""]
    accumulators: tuple[Any, ...]


def init_tree(pipeline: Pipeline, params: Params) -> PipelineState:
    """The state before the first step, on the devices of the parameters and sharded like them.

    Inside `jax.jit`, shardings over automatic mesh axes are not known: compute the state outside, or pass
    `out_shardings`.

    **Arguments:**

    - `pipeline`: applied to every tensor.
    - `params`: a pytree of floating-point arrays.

    Raises `ValueError` if the structure of an accumulator's state depends on the tensor's shape.
    """
    leaves, treedef = jax.tree.flatten(params)
    states = [init_like(pipeline, p) for p in leaves]
    return PipelineState(jnp.zeros((), jnp.int32), _stacked(_state_def(pipeline, leaves), treedef, states))


def update_tree(
    pipeline: Pipeline,
    grads: Params,
    state: PipelineState,
    params: Params,
    *,
    deltas: PyTree[Float[Array, "workers ..."]] | None = None,
    controls: Float[Array, "tensors k"] | None = None,
    num_steps: Int[Array, ""] | None = None,
    loss: Float[Array, ""] | None = None,
) -> tuple[Params, PipelineState]:
    """One step of every tensor. Each tensor's result is independent of the other tensors.

    **Arguments:**

    - `pipeline`: applied to every tensor.
    - `grads`, `params`: gradients and parameters, in one structure.
    - `state`: from `init_tree` or the previous `update_tree`.
    - `deltas`: for aggregators, each worker's deltas, in the same structure.
    - `controls`: what a controller says about each tensor, in the order of `jax.tree.leaves(params)`.
    - `num_steps`, `loss`: the length of training and the current loss, if known.

    **Returns:** the updates to add to `params`, in their dtypes, and the next state.
    """
    params_flat, treedef = jax.tree.flatten(params)
    state_def = _state_def(pipeline, params_flat)
    tensors = _tensors(pipeline, grads, state, params, deltas, controls)
    context = Context(state.step, num_steps, loss)
    results = {}
    for group in grouped(pipeline, tensors):
        results |= zip(group, update_group(pipeline, [tensors[i] for i in group], context), strict=True)
    updates = [results[i][0].reshape(jnp.shape(param)) for i, param in enumerate(params_flat)]
    states = [results[i][1] for i in range(len(tensors))]
    return treedef.unflatten(updates), PipelineState(state.step + 1, _stacked(state_def, treedef, states))


def summarize_tree(
    pipeline: Pipeline,
    summary: Callable[[TensorView], Float[Array, " c"]],
    grads: Params,
    state: PipelineState,
    params: Params,
    controls: Float[Array, "tensors k"] | None = None,
) -> Float[Array, "tensors c"]:
    """A summary of each tensor, in the order of `jax.tree.leaves(params)`.

    **Arguments:**

    - `pipeline`: whose accumulators made the statistics.
    - `summary`: a function of the view of a tensor, with the statistics of `state`.
    - `grads`, `state`, `params`, `controls`: as in `update_tree`.
    """
    tensors = _tensors(pipeline, grads, state, params, controls=controls)

    def of_tensor(tensor: Tensor, length: Int[Array, ""] | None) -> Float[Array, " c"]:
        known = {"step": state.step, "controls": tensor.controls, "length": length}
        return summary(pipeline.view(tensor.grad, tensor.states, tensor.param, **known))

    groups = grouped(pipeline, tensors)
    rows = jnp.concatenate([map_group(of_tensor, [tensors[i] for i in group]) for group in groups])
    return rows[np.argsort(np.concatenate([np.asarray(group) for group in groups]))]


def _tensors(
    pipeline: Pipeline,
    grads: Params,
    state: PipelineState,
    params: Params,
    deltas: PyTree | None = None,
    controls: Float[Array, "tensors k"] | None = None,
) -> list[Tensor]:
    """The arrays of each tensor, a scalar as a vector of one element."""
    params_flat, treedef = jax.tree.flatten(params)
    states_flat = _unstacked(_state_def(pipeline, params_flat), treedef, state.accumulators)
    deltas_flat = [None] * len(params_flat) if deltas is None else treedef.flatten_up_to(deltas)
    controls_flat = [None] * len(params_flat) if controls is None else list(controls)
    per_tensor = zip(treedef.flatten_up_to(grads), states_flat, params_flat, deltas_flat, controls_flat, strict=True)
    return [_with_axes(Tensor(*arrays)) for arrays in per_tensor]


def _with_axes(tensor: Tensor) -> Tensor:
    """The tensor as JAX arrays, a scalar as a vector of one element."""
    tensor = jax.tree.map(jnp.asarray, tensor)
    if tensor.param.ndim:
        return tensor
    deltas = None if tensor.deltas is None else tensor.deltas[:, None]
    return Tensor(tensor.grad.reshape(1), tensor.states, tensor.param.reshape(1), deltas, tensor.controls)


def _state_def(pipeline: Pipeline, params: list) -> Any:
    """The structure of the accumulators' states of one tensor."""
    return jax.tree.structure(jax.eval_shape(pipeline.init, params[0] if params else jnp.zeros(1)))


def _stacked(state_def: Any, treedef: Any, states: list[tuple]) -> tuple[Any, ...]:
    """The states of all tensors, with a tree in place of each array."""
    if any(jax.tree.structure(s) != state_def for s in states):
        raise ValueError(
            "The state of an accumulator must have the same fields for tensors of every shape; return an empty array "
            "instead of `None` for a field that a shape does not need."
        )
    rows = [state_def.flatten_up_to(s) for s in states]
    return state_def.unflatten(treedef.unflatten(row[i] for row in rows) for i in range(state_def.num_leaves))


def _unstacked(state_def: Any, treedef: Any, states: tuple[Any, ...]) -> list[tuple]:
    """The inverse of `_stacked`."""
    columns = [treedef.flatten_up_to(column) for column in state_def.flatten_up_to(states)]
    return [state_def.unflatten(column[i] for column in columns) for i in range(treedef.num_leaves)]
