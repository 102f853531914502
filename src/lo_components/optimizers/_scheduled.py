from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .. import _tree
from .._types import Params, typechecked
from ..parametrization import UpdateRule
from ..schedules import AbstractSchedule, Progress
from ._base import AbstractOptimizer, StepContext, checked_update
from ._optax import as_optimizer


class ScheduledState(NamedTuple):
    """State of a [`lo_components.optimizers.Scheduled`][] optimizer.

    **Arguments:**

    - `step`: the number of updates made.
    - `schedule`: the state of the schedule.
    - `optimizer`: the state of the other optimizer.
    """

    step: Int[Array, ""]
    schedule: Any
    optimizer: Any


class Scheduled(AbstractOptimizer[ScheduledState]):
    r"""Multiplies all updates of another optimizer by the factor of a schedule: a learning rate, fixed or learned.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `schedule`: a factor for each step.
    """

    optimizer: AbstractOptimizer = eqx.field(converter=as_optimizer)
    schedule: AbstractSchedule

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> ScheduledState:
        return ScheduledState(jnp.zeros((), jnp.int32), self.schedule.init(), self.optimizer.init(params))

    @checked_update
    def update(
        self, grads: Params, state: ScheduledState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, ScheduledState]:
        progress = Progress(state.step, context.loss_array(), context.num_steps_array())
        factor, schedule = self.schedule(state.schedule, progress)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, params, context=context)
        updates = jax.tree.map(lambda u: _tree.scaled(factor, u), updates)
        return updates, ScheduledState(state.step + 1, schedule, optimizer)
