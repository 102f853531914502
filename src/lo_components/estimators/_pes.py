from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..unroll import InnerState, TruncatedUnroll
from ._antithetic import draw_noise, init_pair, perturbed, refuse_array_scales, unroll_pair, weigh
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
        if self.num_pairs < 1 or not self.std > 0:
            raise ValueError(f"`num_pairs` must be at least 1 and `std` positive, got {self.num_pairs} and {self.std}.")

    def init(self, learner: Any, *, key: PRNGKeyArray) -> PESState:
        refuse_array_scales(learner)
        theta = eqx.filter(learner, eqx.is_inexact_array)
        inner = jax.vmap(lambda i: init_pair(self.unroll, learner, key=jax.random.fold_in(key, i)))(
            jnp.arange(self.num_pairs)
        )
        return PESState(inner, jax.tree.map(lambda t: jnp.zeros((self.num_pairs, *t.shape), t.dtype), theta))

    def estimate(self, learner: Any, state: PESState, *, key: PRNGKeyArray) -> tuple[Estimate, PESState]:
        def particle(index, inner: InnerState, noise_sum: PyTree):
            noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
            noise = draw_noise(learner, self.std, key=noise_key)
            out = unroll_pair(self.unroll, perturbed(learner, noise), inner, key=unroll_key)
            return out, jax.tree.map(jnp.add, noise_sum, noise)

        out, noise_sum = jax.vmap(particle)(jnp.arange(self.num_pairs), state.inner, state.noise_sum)
        difference = jnp.mean(out.losses[:, 0] - out.losses[:, 1], axis=1)
        grad = weigh(noise_sum, difference, self.std)
        kept = jax.tree.map(lambda e: jnp.where(out.state.done.reshape((-1,) + (1,) * (e.ndim - 1)), 0.0, e), noise_sum)
        estimate = Estimate(
            loss=jnp.mean(out.losses),
            grad=grad,
            finite=jnp.mean(out.finite.astype(jnp.float32)),
            diagnostics={"restarts": jnp.mean(out.state.done.astype(jnp.float32))},
        )
        return estimate, PESState(out.state, kept)
