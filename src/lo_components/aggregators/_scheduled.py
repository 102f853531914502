from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from .. import _tree
from .._types import Params, typechecked
from ..optimizers import StepContext
from ..parametrization import UpdateRule
from ..schedules import AbstractSchedule, Progress
from ._base import AbstractAggregator, AggregatorState, as_aggregator


class ScheduledState(NamedTuple):
    """Inner state of a [`lo_components.aggregators.Scheduled`][] aggregator.

    **Arguments:**

    - `step`: the number of rounds with a usable worker.
    - `schedule`: the state of the schedule.
    - `aggregator`: the inner state of the other aggregator.
    """

    step: Int[Array, ""]
    schedule: Any
    aggregator: Any


class Scheduled(AbstractAggregator[ScheduledState]):
    r"""Multiplies all updates of another aggregator by the factor of a schedule: $\Delta p \leftarrow f_t\, \Delta p$.

    A learned aggregator whose steps stay large gains from a factor that falls to 0 at the end. For an optimizer,
    [`lo_components.optimizers.Scheduled`][] does the same.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `schedule`: a factor for each round. Rounds without a usable worker do not count.

    Raises `TypeError` if `aggregator` is not an aggregator.

    **Example:**

    ```pycon
    >>> from lo_components.schedules import OptaxSchedule
    >>> falling = OptaxSchedule(optax.linear_schedule, 1.0, 0.0, 4)
    >>> aggregator = loc.aggregators.Scheduled(loc.aggregators.Mean(), falling)
    >>> params, deltas = {"w": jnp.zeros(1)}, {"w": jnp.ones((8, 1))}
    >>> state = aggregator.init(params)
    >>> for _ in range(2):
    ...     update, state = aggregator.aggregate(deltas, state, params)
    >>> float(update["w"][0])
    0.75
    ```
    """

    aggregator: AbstractAggregator = eqx.field(converter=as_aggregator)
    schedule: AbstractSchedule

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.aggregator.update_rules(params)

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        inner = self.aggregator.init(params)
        return AggregatorState(ScheduledState(jnp.zeros((), jnp.int32), self.schedule.init(), inner.inner), inner.used)

    @typechecked
    def aggregate(
        self,
        deltas: PyTree,
        state: AggregatorState,
        params: Params,
        *,
        present: Bool[Array | np.ndarray, " workers"] | None = None,
        context: StepContext = StepContext(),
    ) -> tuple[Params, AggregatorState]:
        _tree.check_state(state, self.init, params)
        before = state.inner
        progress = Progress(before.step, context.loss_array(), context.num_steps_array())
        factor, schedule = self.schedule(before.schedule, progress)
        inner = AggregatorState(before.aggregator, state.used)
        update, inner = self.aggregator.aggregate(deltas, inner, params, present=present, context=context)
        update = jax.tree.map(lambda u: _tree.scaled(factor, u), update)
        after = ScheduledState(before.step + 1, schedule, inner.inner)
        return update, AggregatorState(_tree.where(inner.used > 0, after, before), inner.used)
