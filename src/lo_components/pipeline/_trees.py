"""Apply one pipeline to every tensor of a model."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._types import Params
from ._pipeline import Pipeline


class PipelineState(eqx.Module):
    """State of a learner that applies a [`lo_components.pipeline.Pipeline`][] to every tensor.

    **Arguments:**

    - `step`: the number of updates made.
    - `accumulators`: the structure of the parameters, with a tuple of accumulator states in place of each tensor.
    """

    step: Int[Array, ""]
    accumulators: PyTree


def init_tree(pipeline: Pipeline, params: Params) -> PipelineState:
    """The state before the first step.

    **Arguments:**

    - `pipeline`: applied to every tensor.
    - `params`: a pytree of floating-point arrays.
    """
    return PipelineState(jnp.zeros((), jnp.int32), jax.tree.map(pipeline.init, params))


def update_tree(
    pipeline: Pipeline,
    grads: Params,
    state: PipelineState,
    params: Params,
    *,
    deltas: PyTree[Float[Array, "workers ..."]] | None = None,
    num_steps: Int[Array, ""] | None = None,
    loss: Float[Array, ""] | None = None,
) -> tuple[Params, PipelineState]:
    """One step of every tensor. Each tensor's result is independent of the other tensors.

    **Arguments:**

    - `pipeline`: applied to every tensor.
    - `grads`, `params`: gradients and parameters, in one structure.
    - `state`: from `init_tree` or the previous `update_tree`.
    - `deltas`: for aggregators, each worker's deltas, in the same structure.
    - `num_steps`, `loss`: the length of training and the current loss, if known.

    **Returns:** the updates to add to `params`, in their dtypes, and the next state.
    """
    params_flat, treedef = jax.tree.flatten(params)
    deltas_flat = [None] * len(params_flat) if deltas is None else treedef.flatten_up_to(deltas)
    per_tensor = zip(
        treedef.flatten_up_to(grads), treedef.flatten_up_to(state.accumulators), params_flat, deltas_flat, strict=True
    )
    pairs = [
        pipeline.update(grad, states, param, deltas=delta, step=state.step, num_steps=num_steps, loss=loss)
        for grad, states, param, delta in per_tensor
    ]
    updates, states = ([pair[i] for pair in pairs] for i in range(2))
    return treedef.unflatten(updates), PipelineState(state.step + 1, treedef.unflatten(states))
