import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from ..unroll import InnerState, TruncatedUnroll
from ._base import AbstractEstimator, Estimate
from ._pairs import Counterpart, PairOutput, estimated, perturbed, refuse_array_scales, stacked, unroll_pair
from ._shaping import AbstractShaping, Difference

Std = Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]]


def _std(value: Any) -> Any:
    """An array, so that another value compiles nothing anew; a schedule stays what it is."""
    return value if callable(value) else jnp.asarray(value, jnp.float32)


class EvolutionState(eqx.Module):
    """Every pair's inner state, what its noise carries from window to window, and how many windows there were."""

    inner: InnerState
    noise: PyTree
    windows: Int[Array, ""]


class AbstractEvolutionStrategy(AbstractEstimator[EvolutionState]):
    r"""Pairs of unrolls with $\theta + \epsilon$ and its counterpart, $\epsilon \sim \mathcal N(0, \sigma^2)$.

    With $L^\pm$ the window's shares of the members' meta-losses and $s$ the score of the noise (for a single draw
    $\epsilon / \sigma^2$), the estimate is $\frac1n \sum_i \frac12 (L_i^+ - L_i^-)\, s_i$ over pairs whose difference
    is finite. Strategies differ in how long noise is kept and what its score is. Noise and data of a pair depend on
    its index alone.

    **Arguments:**

    - `unroll`: what particles train on, and for how long.
    - `num_pairs`: $n$, antithetic pairs.
    - `std`: $\sigma$, in units of theta: a number, or a schedule from the number of windows so far, as in optax.
        Another number compiles nothing anew. Where a schedule reaches 0, there is no estimate. Noise is rounded to
        theta's dtype: in bfloat16 it has to be above 1 % of theta, or it is lost.
    - `counterpart`: `"antithetic"`: of the second member, $\theta - \epsilon$. `"unperturbed"`: $\theta$ (forward
        differences, with $L^+ - L^0$ for $\frac12(L^+ - L^-)$): the same cost, more variance, but one member trains
        with the very $\theta$.
    - `shaping`: of loss differences; by default none.
    - `leave_out_non_finite`: whether to leave out pairs one of whose members became non-finite. By default non-finite
        losses count as the task's `max_loss`, and only differences that are not finite are left out.
    """

    unroll: TruncatedUnroll
    num_pairs: int = eqx.field(default=8, static=True)
    std: Std = eqx.field(default=0.01, converter=_std, kw_only=True)
    counterpart: Counterpart = eqx.field(default="antithetic", static=True, kw_only=True)
    shaping: AbstractShaping = eqx.field(default=Difference(), kw_only=True)
    leave_out_non_finite: bool = eqx.field(default=False, static=True, kw_only=True)

    def __check_init__(self):
        known = not callable(self.std) and _tree.known(self.std)
        if self.num_pairs < 1 or (known and not jnp.all(jnp.asarray(self.std) > 0)):
            raise ValueError(f"`num_pairs` must be at least 1 and `std` positive, got {self.num_pairs} and {self.std}.")
        if self.counterpart not in ("antithetic", "unperturbed"):
            raise ValueError(f"`counterpart` must be 'antithetic' or 'unperturbed', got {self.counterpart!r}.")

    @abc.abstractmethod
    def init_noise(self, draw: PyTree, std: Float[Array, ""]) -> PyTree:
        """What a pair's noise carries before the first window.

        **Arguments:**

        - `draw`: noise of deviation `std`.
        - `std`: in the first window.
        """

    @abc.abstractmethod
    def noise(
        self, draw: PyTree, std: Float[Array, ""], carried: PyTree, restart: Bool[Array, ""]
    ) -> tuple[PyTree, PyTree, PyTree]:
        """The noise of a window, its score, and what to carry on.

        **Arguments:**

        - `draw`: fresh noise of deviation `std`.
        - `std`: in this window.
        - `carried`: from the window before.
        - `restart`: whether the window begins a new episode.
        """

    def init(self, learner: Any, *, key: PRNGKeyArray) -> EvolutionState:
        """Staggered first episodes of all pairs."""
        refuse_array_scales(learner)
        windows = jnp.zeros((), jnp.int32)
        theta, std = eqx.filter(learner, eqx.is_inexact_array), self._std_after(windows)

        def one(index):
            pair_key = jax.random.fold_in(key, index)
            draw = _draw(theta, std, key=jax.random.split(pair_key, 3)[2])
            return stacked(self.unroll.init(learner, key=pair_key)), self.init_noise(draw, std)

        return EvolutionState(*jax.vmap(one)(jnp.arange(self.num_pairs)), windows)

    def estimate(self, learner: Any, state: EvolutionState, *, key: PRNGKeyArray) -> tuple[Estimate, EvolutionState]:
        """An estimate from the next window of every pair, and their next state."""
        theta, std = eqx.filter(learner, eqx.is_inexact_array), self._std_after(state.windows)

        def one(index, inner: InnerState, carried):
            noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
            noise, score, carried = self.noise(_draw(theta, std, key=noise_key), std, carried, inner.done)
            out = self._run(learner, perturbed(learner, noise, self.counterpart), inner, key=unroll_key)
            return out, score, carried

        out, scores, carried = jax.vmap(one)(jnp.arange(self.num_pairs), state.inner, state.noise)
        estimate = estimated(theta, std, out, scores, self.counterpart, self.shaping, self.leave_out_non_finite)
        return estimate, EvolutionState(out.state, carried, state.windows + 1)

    def _run(self, learner: Any, pair: Any, inner: InnerState, *, key: PRNGKeyArray) -> PairOutput:
        return unroll_pair(self.unroll, pair, inner, key=key)

    def _std_after(self, windows: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(self.std(windows) if callable(self.std) else self.std, jnp.float32)


def _draw(theta: PyTree, std: Float[Array, ""], *, key: PRNGKeyArray) -> PyTree:
    return jax.tree.map(lambda e: (std * e.astype(jnp.float32)).astype(e.dtype), _tree.normal_like(theta, key=key))


def score(noise: PyTree, std: Float[Array, ""]) -> PyTree:
    r"""$\epsilon / \sigma^2$, the gradient of the logarithm of the noise's density with respect to its mean."""
    return jax.tree.map(lambda e: e.astype(jnp.float32) / jnp.where(std > 0, std, 1.0) ** 2, noise)
