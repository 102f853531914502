import abc
import functools
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .. import _tree
from .._types import Params, typechecked
from ..optimizers import StepContext

StateT = TypeVar("StateT")


class AggregatorState(eqx.Module, Generic[StateT]):
    """State of an aggregator.

    **Arguments:**

    - `inner`: what the aggregator remembers.
    - `used`: the share of workers that the last round used; 1 before the first. Below 1, workers were absent or sent
        deltas that were not finite.
    """

    inner: StateT
    used: Float[Array, ""]


class AbstractAggregator(eqx.Module, Generic[StateT]):
    r"""Turns the deltas of $K$ workers into one update of the parameters that they share.

    A worker's delta is new minus old, a direction of descent, so the plain update is the mean. Like an optimizer, an
    aggregator is its meta-parameters: array leaves are meta-learned, Python scalars constants.

    New ones are made of [`lo_components.aggregators.AbstractMaskedAggregator`][], wrappers of this class.
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
        context: StepContext = StepContext(),
    ) -> tuple[Params, AggregatorState[StateT]]:
        """One round.

        **Arguments:**

        - `deltas`: each worker's new parameters minus old ones, each leaf `[workers, *shape]`.
        - `state`: from `init` or the previous round.
        - `params`: the parameters that the workers started from.
        - `context`: `present` says which workers took part; loss and length of training, where features use them.

        **Returns:** the update to add to `params`, in their dtype, and the next state.

        Raises `ValueError` where `deltas` or `present` do not have the structure, the shapes or the dtype to expect,
        and where `state` does not have those of this aggregator's.
        """


class AbstractMaskedAggregator(AbstractAggregator[StateT]):
    r"""An aggregator that uses the workers it can.

    A worker is used if it is `present` and every element of its delta is finite. Means are over the workers used; the
    share of them is reported in the state. A round that can use none gives an update of zeros and leaves the rest of
    the state as it was. Arithmetic is float32. A new aggregator writes `start` and `combine`.
    """

    @abc.abstractmethod
    def start(self, params: Params) -> StateT:
        """What to remember before the first round; of `params` it may use structure, shapes and dtypes alone, since
        every round traces it to check its `state`."""

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
        """The update to add and what to remember.

        **Arguments:**

        - `mean`: of the deltas of the workers used, in the structure of `params`.
        - `deltas`: all of them, each leaf `[workers, *shape]`, with `mean` in place of those that are not used.
        - `state`: from `start` or the previous round.
        - `params`: those that the workers started from.
        - `context`: as given to `aggregate`.
        """

    @typechecked
    def init(self, params: Params) -> AggregatorState:
        """As for every aggregator."""
        return AggregatorState(self.start(params), jnp.ones((), jnp.float32))

    @typechecked
    def aggregate(
        self, deltas: PyTree, state: AggregatorState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, AggregatorState]:
        """As for every aggregator, with `combine` for the workers that can be used."""
        refuse_unlike(deltas, params, context.present)
        _refuse_foreign(state.inner, eqx.filter_eval_shape(self.start, params))
        deltas = jax.tree.map(lambda d: jnp.asarray(d).astype(jnp.float32), deltas)
        used = usable(deltas, context.present)
        mean = jax.tree.map(lambda d: _mean(d, used), deltas)
        filled = jax.tree.map(lambda d, m: jnp.where(_along(used, d), d, m[None]), deltas, mean)
        update, inner = self.combine(mean, filled, state.inner, params, context=context)
        some = jnp.any(used)
        update = jax.tree.map(lambda u, p: jnp.where(some, u, 0.0).astype(jnp.asarray(p).dtype), update, params)
        share = jnp.mean(used, dtype=jnp.float32)
        return update, AggregatorState(_tree.where(some, inner, state.inner), share)


def usable(deltas: PyTree, present: Bool[Array | np.ndarray, " workers"] | None) -> Bool[Array, "*workers"]:
    """Which workers are present and sent nothing but finite numbers."""
    finite = [jnp.all(jnp.isfinite(d), axis=tuple(range(1, d.ndim))) for d in jax.tree.leaves(deltas)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True if present is None else present))


def _along(used: Bool[Array, " workers"], delta: Float[Array, "workers ..."]) -> Bool[Array, "workers ..."]:
    return used.reshape(-1, *(1 for _ in delta.shape[1:]))


def _mean(delta: Float[Array, "workers *shape"], used: Bool[Array, " workers"]) -> Float[Array, "*shape"]:
    # Divided before the sum, which large deltas would overflow; rounding upwards would too.
    count = jnp.maximum(jnp.sum(used, dtype=jnp.float32), 1.0)
    largest = float(jnp.finfo(jnp.float32).max)
    return jnp.clip(jnp.sum(jnp.where(_along(used, delta), delta / count, 0.0), axis=0), -largest, largest)


def _refuse_foreign(state: Any, expected: Any) -> None:
    rule = "`state` must come from this aggregator's `init` with parameters like these, or from its previous round"
    structures = jax.tree.structure(state), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise ValueError(f"{rule}: it remembers {structures[0]}, expected {structures[1]}.")
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        if isinstance(like, jax.ShapeDtypeStruct):
            found, wanted = ((getattr(x, "dtype", type(x).__name__), jnp.shape(x)) for x in (leaf, like))
            if found != wanted:
                name = _tree.path_name(path)
                raise ValueError(f"{rule}: at `{name}` got {found[0]}{found[1]}, expected {wanted[0]}{wanted[1]}.")


def refuse_unlike(deltas: Any, params: Any, present: Any) -> None:
    """Raise what `aggregate` promises to."""
    structures = jax.tree.structure(deltas), jax.tree.structure(params)
    if structures[0] != structures[1]:
        raise ValueError(
            f"`deltas` must have the structure of `params`: got {structures[0]}, expected {structures[1]}."
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(deltas)]
    leaves = jax.tree.leaves(deltas)
    workers = np.shape(leaves[0])[:1] if leaves else np.shape(present)
    for path, delta, param in zip(paths, leaves, jax.tree.leaves(params), strict=True):
        if np.shape(delta) != (*workers, *np.shape(param)) or workers in ((), (0,)):
            expected = ", ".join(map(str, [*(workers if workers > (0,) else ("workers",)), *np.shape(param)]))
            raise ValueError(
                f"`deltas` must be `[workers, *shape]` with the shapes of `params` and the same workers everywhere: at "
                f"`{_tree.path_name(path)}` got {np.shape(delta)}, expected ({expected})."
            )
        if not jnp.issubdtype(jnp.result_type(delta), jnp.floating):
            raise ValueError(
                f"`deltas` must be floating point: at `{_tree.path_name(path)}` got {jnp.result_type(delta)}."
            )
    if present is not None and np.shape(present) != workers:
        raise ValueError(
            f"`context.present` must have one entry per worker: got {np.shape(present)}, expected {workers}."
        )
