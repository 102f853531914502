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
from ._base import AbstractAggregator, AggregatorState, check_deltas, usable

StateT = TypeVar("StateT")


class Scaled(AbstractAggregator[StateT]):
    r"""Another aggregator whose update is multiplied leaf by leaf: $\Delta p_l \leftarrow s_l\, \Delta p_l$.

    With the scales of muP an aggregator that was meta-trained on narrow networks serves wide ones, as
    [`lo_components.optimizers.Scaled`][] does for optimizers. [`lo_components.unroll.LocalRound`][] applies it by
    itself. A scaled `Mean` no longer averages.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `scales`: a float or a scalar array for each leaf of the parameters, in their structure. Scales are constants:
        arrays are not meta-learned.

    Raises `ValueError` if `scales` has another structure than the parameters.
    """

    aggregator: AbstractAggregator[StateT]
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
    r"""Another aggregator that leaves out workers with unusually large deltas.

    A worker is left out if $\lVert d_k \rVert > c \cdot m$, with the norm over all parameters together and $m$ the
    (lower) median of the norms of the workers that are present and finite, so up to half of the workers may fail. If
    the median is 0, no worker is left out. Workers left out count as absent, and lower `AggregatorState.used`.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `max_ratio`: $c$, at least 1.

    Raises `ValueError` if the ratio is below 1.
    """

    aggregator: AbstractAggregator[StateT]
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
            # Without a usable worker, the median is infinite.
            norms = jnp.where(used, _norms(deltas), jnp.inf)
            count = jnp.sum(used, dtype=jnp.int32)
            median = jnp.sort(norms)[jnp.maximum(count - 1, 0) // 2]
            # If most workers stand still, those that move are not too large.
            usual = (norms <= self.max_ratio * median) | (median == 0)
            present = used & usual
        return self.aggregator.aggregate(deltas, state, params, present=present, context=context)


def _norms(deltas: PyTree) -> Float[Array, " workers"]:
    """The norm of each worker's delta; scaled by its largest element, so that squares stay within range."""
    leaves = [jnp.asarray(d).astype(jnp.float32).reshape(len(d), -1) for d in jax.tree.leaves(deltas)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(d), axis=1, initial=0.0) for d in leaves]), axis=0)
    unit = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
    squares = [jnp.sum(jnp.square(d / unit[:, None]), axis=1) for d in leaves]
    return unit * jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
