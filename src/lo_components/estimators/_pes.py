import jax
import jax.numpy as jnp

from ._evolution import AbstractEvolutionStrategy, score


class PES(AbstractEvolutionStrategy):
    r"""Persistent Evolution Strategies: unbiased estimates from truncated unrolls.

    Each of $n$ particles is an antithetic pair, unrolled with $\theta \pm \epsilon_w$, $\epsilon_w \sim
    \mathcal N(0, \sigma_w^2)$ anew in every window $w$. With $L^\pm_w$ the window's share of the meta-loss,

    $$\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2} \sum_{u \le w} \frac{\epsilon_u}{\sigma_u^2},$$

    where the sum starts anew with each episode. Averaged over an episode's windows this is an unbiased estimate of the
    gradient of the (Gaussian-smoothed) meta-loss. Arguments are those of
    [`lo_components.estimators.AbstractEvolutionStrategy`][].

    ??? cite "Source"
        Vicol, Metz & Sohl-Dickstein, *Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
        Evolution Strategies* (arXiv 2112.13835), equation 9 and algorithm 2.
    """

    def init_noise(self, draw, std):
        return jax.tree.map(lambda e: jnp.zeros(e.shape, jnp.float32), draw)

    def noise(self, draw, std, carried, restart):
        scores = jax.tree.map(lambda sum, new: jnp.where(restart, 0.0, sum) + new, carried, score(draw, std))
        return draw, scores, scores
