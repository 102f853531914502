from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._tree import check_state
from .._types import Params, typechecked
from ..controllers import AbstractController, AbstractSummary
from ..parametrization import UpdateRule
from ..pipeline import Pipeline, PipelineState, init_tree, summarize_tree, update_tree
from ..schedules import Progress
from ._base import AbstractOptimizer, StepContext, checked_update


class ControlledState(NamedTuple):
    """State of a [`lo_components.optimizers.ControlledOptimizer`][].

    **Arguments:**

    - `step`: the number of updates made.
    - `accumulators`: as in [`lo_components.pipeline.PipelineState`][].
    - `controller`: the state of the controller.
    """

    step: Int[Array, ""]
    accumulators: tuple[Any, ...]
    controller: Any


class ControlledOptimizer(AbstractOptimizer[ControlledState]):
    """One pipeline for every tensor, and a controller that sees a summary of each and sets its controls, as in VeLO.

    **Arguments:**

    - `controller`: maps the summaries of all tensors to controls of each.
    - `summary`: describes a tensor to the controller.
    - `pipeline`: maps a tensor's gradient to its update; its parts may read the controls from the view.

    Raises `ValueError` if the controller takes summaries of another size.
    """

    controller: AbstractController
    summary: AbstractSummary
    pipeline: Pipeline

    def __check_init__(self):
        if self.controller.in_size != self.summary.size:
            raise ValueError(
                f"The controller takes summaries of {self.controller.in_size} numbers, but `summary` gives "
                f"{self.summary.size}."
            )

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return jax.tree.map(self.pipeline.update_rule, params)

    @typechecked
    def init(self, params: Params) -> ControlledState:
        step, accumulators = init_tree(self.pipeline, params)
        return ControlledState(step, accumulators, self.controller.init(len(nonempty(params))))

    @checked_update
    def update(
        self, grads: Params, state: ControlledState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, ControlledState]:
        check_state(state, self.init, params)
        rows = nonempty(params)
        if not rows.size:
            return params, state._replace(step=state.step + 1)
        loss, num_steps = context.loss_array(), context.num_steps_array()
        before = PipelineState(state.step, state.accumulators)
        summaries = summarize_tree(self.pipeline, self.summary, grads, before, params)[rows]
        controls, controller = self.controller(summaries, state.controller, Progress(state.step, loss, num_steps))
        controls = for_all_tensors(controls, rows, params)
        updates, after = update_tree(
            self.pipeline, grads, before, params, controls=controls, num_steps=num_steps, loss=loss
        )
        return updates, ControlledState(*after, controller)


def nonempty(params: Params) -> Int[np.ndarray, " rows"]:
    """The positions, among the leaves, of tensors that have elements. Controllers see only these."""
    return np.flatnonzero([np.size(p) > 0 for p in jax.tree.leaves(params)])


def for_all_tensors(
    controls: Float[Array, "rows k"], rows: Int[np.ndarray, " rows"], params: Params
) -> Float[Array, "tensors k"]:
    """Controls with a row for every tensor, zeros for empty ones."""
    count = len(jax.tree.leaves(params))
    if len(rows) == count:
        return controls
    return jnp.zeros((count, controls.shape[1]), controls.dtype).at[rows].set(controls)
