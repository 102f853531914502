import abc
import functools
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .. import _tree
from .._types import Params, brief, typechecked
from ..optimizers import StepContext
from ..parametrization import UpdateRule

StateT = TypeVar("StateT")


class AggregatorState(eqx.Module, Generic[StateT]):
    """State of an aggregator.

    **Arguments:**

    - `inner`: the aggregator's own state.
    - `used`: the fraction of workers used in the last round; 1 before the first. It is below 1 if workers were absent
        or sent non-finite deltas.
    """

    inner: StateT
    used: Float[Array, ""]


class AbstractAggregator(eqx.Module, Generic[StateT]):
    r"""Combines the deltas of $K$ workers into one update of the global parameters.

    A worker's delta is its new parameters minus the old ones. It is a descent direction, so the plain update is the
    mean. As in an optimizer, array leaves are meta-learned and Python numbers are constants.

    To write an aggregator, subclass [`lo_components.aggregators.AbstractMaskedAggregator`][]; to write a wrapper,
    subclass this class.
    """

    @abc.abstractmethod
    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """How the size of each array's update depends on the deltas; parametrizations scale updates accordingly.

        Deltas already have the right size, so updates that are linear in them are
        [`lo_components.parametrization.UNSCALED`][lo_components.parametrization.UpdateRule].

        **Arguments:**

        - `params`: a pytree of floating-point arrays; only its structure and shapes matter.

        **Returns:** an [`lo_components.parametrization.UpdateRule`][] for each leaf of `params`.
        """

    @abc.abstractmethod
    def init(self, params: Params) -> AggregatorState[StateT]:
        """The state before the first round.

        **Arguments:**

        - `params`: a pytree of floating-point arrays.
        """

    @abc.abstractmethod
    def aggregate(
        self,
        deltas: PyTree,
        state: AggregatorState[StateT],
        params: Params,
        *,
        present: Bool[Array | np.ndarray, " workers"] | None = None,
        context: StepContext = StepContext(),
    ) -> tuple[Params, AggregatorState[StateT]]:
        """One round.

        **Arguments:**

        - `deltas`: each worker's new parameters minus the old ones, each leaf `[workers, *shape]`.
        - `state`: from `init` or the previous round.
        - `params`: the parameters that the workers started from.
        - `present`: which workers took part; by default all.
        - `context`: the loss and the length of training, for features that use them.

        **Returns:** the update to add to `params`, in their dtypes, and the next state.

        Raises `ValueError` if `deltas`, `present` or `state` has the wrong structure, shapes or dtypes.
        """


class AbstractMaskedAggregator(AbstractAggregator[StateT]):
    r"""An aggregator that leaves out absent workers and workers with non-finite deltas.

    A worker is used if it is `present` and every element of its delta is finite. Means are over the workers used; the
    state reports their fraction. If no worker can be used, the update is zero and the inner state does not change.
    Arithmetic is float32. Subclasses implement `init_inner`, `combine` and `update_rules`.
    """

    @abc.abstractmethod
    def init_inner(self, params: Params) -> StateT:
        """The inner state before the first round.

        **Arguments:**

        - `params`: a pytree of floating-point arrays. Use only its structure, shapes and dtypes, since each round
            traces this method to check the state.
        """

    @abc.abstractmethod
    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: StateT,
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], StateT]:
        """Combine the deltas of a round.

        **Arguments:**

        - `mean`: the mean delta of the workers used, in the structure of `params`.
        - `deltas`: of all workers, each leaf `[workers, *shape]`; deltas of unused workers are replaced by `mean`.
        - `state`: from `init_inner` or the previous round.
        - `params`: the parameters that the workers started from.
        - `context`: as given to `aggregate`.

        **Returns:** the update to add, and the next inner state.
        """

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        """The state before the first round, for `params`."""
        return AggregatorState(self.init_inner(params), jnp.ones((), jnp.float32))

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
        """One round: `combine` applied to the `deltas` of the workers that can be used.

        `state`, `params`, `present` and `context` are as in [`lo_components.aggregators.AbstractAggregator`][].

        **Returns:** the update to add to `params`, in their dtypes, and the next state.
        """
        check_deltas(deltas, params, present)
        _tree.check_state(state, self.init, params)
        deltas = jax.tree.map(lambda d: jnp.asarray(d).astype(jnp.float32), deltas)
        used = usable(deltas, present)
        mean = jax.tree.map(lambda d: _mean(d, used), deltas)
        filled = jax.tree.map(lambda d, m: jnp.where(_along(used, d), d, m[None]), deltas, mean)
        update, inner = self.combine(mean, filled, state.inner, params, context=context)
        some = jnp.any(used)
        update = jax.tree.map(lambda u, p: jnp.where(some, u, 0.0).astype(jnp.asarray(p).dtype), update, params)
        fraction = jnp.mean(used, dtype=jnp.float32)
        return update, AggregatorState(_tree.where(some, inner, state.inner), fraction)


def as_aggregator(aggregator: Any) -> AbstractAggregator:
    """An aggregator unchanged. Raises `TypeError` for anything else."""
    if not isinstance(aggregator, AbstractAggregator):
        raise TypeError(f"`aggregator` must be an aggregator, got {brief(aggregator)}.")
    return aggregator


def usable(deltas: PyTree, present: Bool[Array | np.ndarray, " workers"] | None) -> Bool[Array, "*workers"]:
    """Whether each worker is present and its delta is finite."""
    finite = [jnp.all(jnp.isfinite(d), axis=tuple(range(1, d.ndim))) for d in jax.tree.leaves(deltas)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True if present is None else present))


def _along(used: Bool[Array, " workers"], delta: Float[Array, "workers ..."]) -> Bool[Array, "workers ..."]:
    return used.reshape(-1, *(1 for _ in delta.shape[1:]))


def _mean(delta: Float[Array, "workers *shape"], used: Bool[Array, " workers"]) -> Float[Array, "*shape"]:
    # Divide first, since the sum of large deltas could overflow; clip, since rounding up could overflow too.
    count = jnp.maximum(jnp.sum(used, dtype=jnp.float32), 1.0)
    largest = float(jnp.finfo(jnp.float32).max)
    return jnp.clip(jnp.sum(jnp.where(_along(used, delta), delta / count, 0.0), axis=0), -largest, largest)


def check_deltas(deltas: Any, params: Any, present: Any) -> None:
    """Raise `ValueError` unless `deltas` and `present` match `params`."""
    if difference := _tree.structure_difference(deltas, params):
        raise ValueError(f"`deltas` must have the structure of `params`, but {difference}.")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(deltas)]
    leaves = jax.tree.leaves(deltas)
    workers = np.shape(leaves[0])[:1] if leaves else np.shape(present)
    for path, delta, param in zip(paths, leaves, jax.tree.leaves(params), strict=True):
        if np.shape(delta) != (*workers, *np.shape(param)) or workers in ((), (0,)):
            expected = ", ".join(map(str, [*(workers if workers > (0,) else ("workers",)), *np.shape(param)]))
            raise ValueError(
                f"`deltas` must be `[workers, *shape]` with the shapes of `params` and one number of workers: at "
                f"`{_tree.path_name(path)}` got {np.shape(delta)}, expected ({expected})."
            )
        if not jnp.issubdtype(jnp.result_type(delta), jnp.floating):
            raise ValueError(
                f"`deltas` must be floating point: at `{_tree.path_name(path)}` got {jnp.result_type(delta)}."
            )
    if present is not None and np.shape(present) != workers:
        raise ValueError(f"`present` must have one entry per worker: got {np.shape(present)}, expected {workers}.")
