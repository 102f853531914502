from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..unroll import InnerState, TruncatedUnroll
from ._antithetic import check_settings, estimate, init_pairs, unroll_pairs
from ._base import AbstractEstimator, Estimate


class PESState(eqx.Module):
    """Every particle's inner state and the sum of its noise since its episode began."""

    inner: InnerState
    noise_sum: PyTree[Float[Array, "pairs ..."]]


class PES(AbstractEstimator[PESState]):
    r"""Persistent Evolution Strategies: unbiased estimates from truncated unrolls.

    Each of $n$ particles is an antithetic pair, unrolled with $\theta \pm \epsilon_w$, $\epsilon_w \sim
    \mathcal N(0, \sigma^2)$ anew in every window $w$. With $L^\pm_w$ the mean meta-loss over the window,

    $$\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2 \sigma^2} \sum_{u \le w} \epsilon_u,$$

    where the sum of noise starts anew with each episode. Averaged over an episode's windows this is an unbiased
    estimate of the gradient of the (Gaussian-smoothed) mean loss over the episode. Pairs whose loss difference is not
    finite are left out of the mean. Noise and data depend on a particle's index alone.

    ??? cite "Source"
        Vicol, Metz & Sohl-Dickstein, *Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
        Evolution Strategies* (arXiv 2112.13835), equation 9 and algorithm 2.
    """

    unroll: TruncatedUnroll
    num_pairs: int = eqx.field(default=8, static=True)
    std: float = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        check_settings(self.num_pairs, self.std)

    def init(self, learner: Any, *, key: PRNGKeyArray) -> PESState:
        inner = init_pairs(self.unroll, learner, self.num_pairs, key=key)
        theta = eqx.filter(learner, eqx.is_inexact_array)
        return PESState(inner, jax.tree.map(lambda t: jnp.zeros((self.num_pairs, *t.shape), t.dtype), theta))

    def estimate(self, learner: Any, state: PESState, *, key: PRNGKeyArray) -> tuple[Estimate, PESState]:
        out, noise = unroll_pairs(self.unroll, learner, state.inner, self.std, key=key)
        noise_sum = jax.tree.map(jnp.add, state.noise_sum, noise)
        done = out.state.done
        kept = jax.tree.map(lambda e: jnp.where(done.reshape((-1,) + (1,) * (e.ndim - 1)), 0.0, e), noise_sum)
        return estimate(out, noise_sum, self.std), PESState(out.state, kept)
