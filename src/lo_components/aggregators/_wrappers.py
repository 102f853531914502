from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .. import _learner, _tree
from .._types import Params, Scales, typechecked
from ..optimizers import StepContext
from ..parametrization import UpdateRule
from ._base import AbstractAggregator, AggregatorState, as_aggregator, check_deltas, usable

StateT = TypeVar("StateT")


class Scaled(AbstractAggregator[StateT]):
    r"""Multiplies another aggregator's update leaf by leaf: $\Delta p_l \leftarrow s_l\, \Delta p_l$.

    With muP's scales, an aggregator that was meta-trained on narrow networks works on wide ones.
    [`lo_components.unroll.LocalRound`][] applies this wrapper automatically. A scaled `Mean` no longer averages.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `scales`: a float or a scalar array for each leaf of the parameters, in their structure. Scales are constants:
        arrays are not meta-learned.

    Raises `TypeError` if `aggregator` is not an aggregator. `init` and `aggregate` raise `ValueError` unless there is a
    scale for each leaf of the parameters.
    """

    aggregator: AbstractAggregator[StateT] = eqx.field(converter=as_aggregator)
    scales: Scales = eqx.field(converter=_learner.with_constants)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.aggregator.update_rules(params)

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        _tree.checked_scales(self.scales, params)
        return self.aggregator.init(params)

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
        scales = _tree.checked_scales(self.scales, params)
        update, state = self.aggregator.aggregate(deltas, state, params, present=present, context=context)
        return jax.tree.map(_tree.scaled, scales, update), state


class Screened(AbstractAggregator[StateT]):
    r"""Leaves out workers with unusually large deltas before another aggregator combines the others.

    A worker is left out if $\lVert d_k \rVert > c \cdot m$, with the norm over all parameters together and $m$ the
    (lower) median of the norms of the workers that are present and finite; up to half of the workers may fail. If the
    median is 0, no worker is left out. Workers left out count as absent in `AggregatorState.used`.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `max_ratio`: $c$, at least 1.

    Raises `ValueError` if `max_ratio` is below 1.
    """

    aggregator: AbstractAggregator[StateT] = eqx.field(converter=as_aggregator)
    max_ratio: float = eqx.field(default=10.0, static=True, converter=float)

    def __check_init__(self):
        if not self.max_ratio >= 1:
            raise ValueError(f"`max_ratio` must be at least 1, got {self.max_ratio}.")

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.aggregator.update_rules(params)

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        return self.aggregator.init(params)

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
        check_deltas(deltas, params, present)
        if jax.tree.leaves(deltas):
            used = usable(deltas, present)
            # If no worker can be used, the median is infinite.
            norms = jnp.where(used, _norms(deltas), jnp.inf)
            count = jnp.sum(used, dtype=jnp.int32)
            median = jnp.sort(norms)[jnp.maximum(count - 1, 0) // 2]
            # If most deltas are zero, others are not too large.
            usual = (norms <= self.max_ratio * median) | (median == 0)
            present = used & usual
        return self.aggregator.aggregate(deltas, state, params, present=present, context=context)


def _norms(deltas: PyTree) -> Float[Array, " workers"]:
    """The norm of each worker's delta, divided by its largest element meanwhile so that squares stay in range."""
    leaves = [jnp.asarray(d).astype(jnp.float32).reshape(len(d), -1) for d in jax.tree.leaves(deltas)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(d), axis=1, initial=0.0) for d in leaves]), axis=0)
    unit = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
    squares = [jnp.sum(jnp.square(d / unit[:, None]), axis=1) for d in leaves]
    return unit * jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
