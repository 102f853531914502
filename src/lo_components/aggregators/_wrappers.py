import dataclasses
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .. import _tree
from .._types import Params, Scales, typechecked
from ..optimizers import StepContext
from ._base import AbstractAggregator, AggregatorState, refuse_unlike, usable

StateT = TypeVar("StateT")


class Scaled(AbstractAggregator[StateT]):
    r"""Another aggregator whose update is multiplied leaf by leaf: $\Delta p_l \leftarrow s_l\, \Delta p_l$.

    With the scales of muP an aggregator that was meta-trained on narrow networks serves wide ones, as
    [`lo_components.optimizers.Scaled`][] does for optimizers. A learned aggregator's step has a size of its own, so it
    takes the scales of Adam-type rules; the mean of the workers is no longer their mean.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `scales`: a float for each leaf of the parameters, in their structure.

    Raises `ValueError` where `scales` has another structure than the parameters.
    """

    aggregator: AbstractAggregator[StateT]
    scales: Scales

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        _tree.check_scales(self.scales, params)
        return self.aggregator.init(params)

    @typechecked
    def aggregate(
        self, deltas: PyTree, state: AggregatorState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, AggregatorState]:
        _tree.check_scales(self.scales, params)
        update, state = self.aggregator.aggregate(deltas, state, params, context=context)
        return jax.tree.map(_tree.scaled, self.scales, update), state


class Screened(AbstractAggregator[StateT]):
    r"""Another aggregator that does without workers whose deltas are far larger than the others'.

    A worker is left out where $\lVert d_k \rVert > c \cdot m$, with the norm over all parameters together and $m$ the
    median of the norms of the workers that are present and finite, the lower one of an even number: up to half of the
    workers may go wrong. Where it is 0, none is left out. Those left out count as absent, and lower
    `AggregatorState.used`.

    **Arguments:**

    - `aggregator`: the aggregator to wrap.
    - `max_ratio`: $c$, at least 1.

    Raises `ValueError` for a ratio below 1.
    """

    aggregator: AbstractAggregator[StateT]
    max_ratio: float = eqx.field(default=10.0, static=True, converter=float)

    def __check_init__(self):
        if not self.max_ratio >= 1:
            raise ValueError(f"`max_ratio` must be at least 1, got {self.max_ratio}.")

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        return self.aggregator.init(params)

    @typechecked
    def aggregate(
        self, deltas: PyTree, state: AggregatorState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, AggregatorState]:
        refuse_unlike(deltas, params, context.present)
        if jax.tree.leaves(deltas):
            used = usable(deltas, context.present)
            # Where nothing is usable, neither is the median.
            norms = jnp.where(used, _norms(deltas), jnp.inf)
            count = jnp.sum(used, dtype=jnp.int32)
            median = jnp.sort(norms)[jnp.maximum(count - 1, 0) // 2]
            # Where most stand still, those that move are not too large.
            usual = (norms <= self.max_ratio * median) | (median == 0)
            context = dataclasses.replace(context, present=used & usual)
        return self.aggregator.aggregate(deltas, state, params, context=context)


def _norms(deltas: PyTree) -> Float[Array, " workers"]:
    """The norm of each worker's delta; scaled by its largest element, so that squares stay within range."""
    leaves = [jnp.asarray(d).astype(jnp.float32).reshape(len(d), -1) for d in jax.tree.leaves(deltas)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(d), axis=1, initial=0.0) for d in leaves]), axis=0)
    unit = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
    squares = [jnp.sum(jnp.square(d / unit[:, None]), axis=1) for d in leaves]
    return unit * jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
