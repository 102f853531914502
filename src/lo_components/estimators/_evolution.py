from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._learner import Learner, partition
from ..unroll import InnerState, TruncatedUnroll
from ._base import AbstractEstimator, Estimate, signal_and_noise
from ._noise import AbstractNoise, FreshNoise
from ._pairs import PairOutput, perturbed, twins, unroll_episode, unroll_pair
from ._shaping import AbstractShaping, Difference

Std = Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]]


def _std(value: Any) -> Any:
    """An array, so that changing it does not recompile; a schedule stays as it is."""
    return value if callable(value) else jnp.asarray(value, jnp.float32)


class EvolutionState(eqx.Module):
    """The state of an [`lo_components.estimators.EvolutionStrategy`][].

    **Arguments:**

    - `inner`: the inner training of each pair. Arrays of `inner.train` have leading axes `[pairs, 2]`.
    - `noise`: the state of each pair's noise.
    - `windows`: the number of truncation windows so far.
    """

    inner: InnerState
    noise: PyTree
    windows: Int[Array, ""]


class EvolutionStrategy(AbstractEstimator[EvolutionState]):
    r"""Antithetic pairs, unrolled with $\theta + \epsilon$ and $\theta - \epsilon$ for one truncation window at a time.

    With $L_i^\pm$ the contributions of the window to the meta-losses of the two members and $s_i$ the score of the
    noise, the estimate is $\frac1n \sum_i \frac12 (L_i^+ - L_i^-)\, s_i$ over the pairs whose difference is finite.
    The noise decides which evolution strategy this is: [`lo_components.estimators.PES`][],
    [`lo_components.estimators.GPES`][], [`lo_components.estimators.ESSingle`][] and
    [`lo_components.estimators.TruncatedES`][] choose it. The noise and the data of a pair depend only on its index and
    the key, not on the number of pairs.

    **Arguments:**

    - `unroll`: inner training.
    - `noise`: how often noise is resampled, and its score.
    - `num_pairs`: $n$.
    - `std`: $\sigma$, in units of theta: a number, or a schedule of the number of windows so far, as in optax.
        Changing the number does not recompile. If a schedule reaches 0, there is no estimate. Noise is rounded to the
        dtype of theta; in bfloat16 it is lost unless it is larger than 1 % of theta.
    - `antithetic`: whether the second member is trained with $\theta - \epsilon$. Otherwise it is trained with $\theta$
        itself (forward differences) and the factor $\frac12$ is dropped, which costs the same and has more variance.
    - `shaping`: applied to the loss differences; by default none.
    - `leave_out_non_finite`: whether to leave out pairs of which a member became non-finite. By default, non-finite
        losses count as the task's `max_loss`, and only pairs whose difference is not finite are left out.

    Raises `ValueError` if `num_pairs` is below 1 or `std` is not positive.
    """

    unroll: TruncatedUnroll
    noise: AbstractNoise
    num_pairs: int = eqx.field(default=8, static=True)
    std: Std = eqx.field(default=0.01, converter=_std, kw_only=True)
    antithetic: bool = eqx.field(default=True, static=True, kw_only=True)
    shaping: AbstractShaping = eqx.field(default=Difference(), kw_only=True)
    leave_out_non_finite: bool = eqx.field(default=False, static=True, kw_only=True)

    def __check_init__(self):
        _check(self)

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> EvolutionState:
        theta, _ = partition(learner)

        def one(index):
            pair_key = jax.random.fold_in(key, index)
            return twins(self.unroll.init(learner, key=pair_key)), self.noise.init(theta, key=pair_key)

        return EvolutionState(*jax.vmap(one)(jnp.arange(self.num_pairs)), jnp.zeros((), jnp.int32))

    def estimate(
        self, learner: Learner, state: EvolutionState, *, key: PRNGKeyArray
    ) -> tuple[Estimate, EvolutionState]:
        theta, rest = partition(learner)
        std = _std_after(self.std, state.windows)

        def one(index, inner: InnerState, noise_state):
            noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
            noise, score, noise_state = self.noise.sample(theta, std, noise_state, inner.episode.window, key=noise_key)
            pair = perturbed(theta, noise, self.antithetic)
            return unroll_pair(self.unroll, pair, rest, inner, key=unroll_key), score, noise_state

        out, scores, noise = jax.vmap(one)(jnp.arange(self.num_pairs), state.inner, state.noise)
        return _estimated(self, theta, std, out, scores), EvolutionState(out.state, noise, state.windows + 1)


class FullES(AbstractEstimator[Int[Array, ""]]):
    r"""Evolution strategies on whole episodes: $\hat g = \frac1n \sum_i \frac{L^+ - L^-}{2\sigma^2}\epsilon$, with $L$
    the meta-loss of a new episode in each estimate.

    Unbiased for the smoothed meta-loss. An estimate takes as many steps as the longest episode of any pair. Pairs may
    have different horizons, and changing them does not recompile. The state is the number of estimates so far, which
    horizons that depend on the number of windows take instead.

    **Arguments:**

    - `unroll`: inner training; the length of its truncation window does not matter.
    - `num_pairs`, `std`, `antithetic`, `shaping`, `leave_out_non_finite`: as in
        [`lo_components.estimators.EvolutionStrategy`][], but schedules of `std` take the number of estimates so far.

    Raises `ValueError` if `num_pairs` is below 1 or `std` is not positive.

    ??? cite "Source"
        Salimans et al., *Evolution Strategies as a Scalable Alternative to Reinforcement Learning* (arXiv 1703.03864).
    """

    unroll: TruncatedUnroll
    num_pairs: int = eqx.field(default=8, static=True)
    std: Std = eqx.field(default=0.01, converter=_std, kw_only=True)
    antithetic: bool = eqx.field(default=True, static=True, kw_only=True)
    shaping: AbstractShaping = eqx.field(default=Difference(), kw_only=True)
    leave_out_non_finite: bool = eqx.field(default=False, static=True, kw_only=True)

    def __check_init__(self):
        _check(self)

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    def estimate(
        self, learner: Learner, state: Int[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Estimate, Int[Array, ""]]:
        theta, rest = partition(learner)
        std = _std_after(self.std, state)

        def one(index):
            noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
            noise, score, _ = FreshNoise().sample(theta, std, None, jnp.zeros((), jnp.int32), key=noise_key)
            pair = perturbed(theta, noise, self.antithetic)
            return unroll_episode(self.unroll, pair, rest, windows_so_far=state, key=unroll_key), score

        out, scores = jax.vmap(one)(jnp.arange(self.num_pairs))
        return _estimated(self, theta, std, out, scores), state + 1


def _check(strategy: EvolutionStrategy | FullES) -> None:
    std = strategy.std
    concrete = not callable(std) and _tree.concrete(std)
    if strategy.num_pairs < 1 or (concrete and not jnp.all(jnp.asarray(std) > 0)):
        raise ValueError(f"`num_pairs` must be at least 1 and `std` positive, got {strategy.num_pairs} and {std}.")


def _std_after(std: Std, windows: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(std(windows) if callable(std) else std, jnp.float32)


def _estimated(
    strategy: EvolutionStrategy | FullES,
    theta: PyTree[Float[Array, "..."]],
    std: Float[Array, ""],
    out: PairOutput,
    scores: PyTree[Float[Array, "pairs ..."]],
) -> Estimate:
    """The mean over usable pairs of shaped differences times scores."""
    usable = jnp.isfinite(out.difference) & (std > 0)
    if strategy.leave_out_non_finite:
        usable &= jnp.all(out.finite, axis=1)
    shaped = jnp.where(usable, strategy.shaping(out.difference, out.meta_losses, usable), 0.0)
    count = jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32))
    reduced = usable & (jnp.abs(shaped) < jnp.abs(out.difference))
    weights = shaped * (0.5 if strategy.antithetic else 1.0)
    vectors = jax.vmap(_tree.raveled)(scores)
    # Divide last, so that particles on several devices need one sum, not two in sequence.
    grad = jnp.matmul(weights, vectors, precision=jax.lax.Precision.HIGHEST) / count
    return Estimate(
        loss=jnp.mean(out.loss),
        meta_loss=jnp.mean(out.meta_losses),
        grad=_tree.unraveled(grad, theta),
        finite=jnp.mean(out.finite, dtype=jnp.float32),
        usable=jnp.mean(usable, dtype=jnp.float32),
        inner_steps=2 * strategy.unroll.window * jnp.sum(out.windows),
        diagnostics={
            "restarts": jnp.mean(out.state.episode.done, dtype=jnp.float32),
            "clipped_losses": jnp.mean(out.clipped),
            "reduced_differences": jnp.sum(reduced, dtype=jnp.float32) / count,
            **signal_and_noise(grad, jnp.square(weights), vectors, count),
        },
    )
