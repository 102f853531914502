from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..unroll import InnerState, TruncatedUnroll
from ._antithetic import draw_noise, init_pair, perturbed, refuse_array_scales, unroll_pair, weigh
from ._base import AbstractEstimator, Estimate


class TruncatedES(AbstractEstimator[InnerState]):
    r"""Evolution strategies on each window alone: $\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2\sigma^2}\epsilon_w$.

    Biased where an episode has more than one window: it ignores what earlier windows' parameters owe to $\theta$.
    With one window per episode it equals [`lo_components.estimators.PES`][].

    ??? cite "Source"
        Metz et al., *Understanding and correcting pathologies in the training of learned optimizers*
        (arXiv 1810.10180), section 3.
    """

    unroll: TruncatedUnroll
    num_pairs: int = eqx.field(default=8, static=True)
    std: float = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        if self.num_pairs < 1 or not self.std > 0:
            raise ValueError(f"`num_pairs` must be at least 1 and `std` positive, got {self.num_pairs} and {self.std}.")

    def init(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        refuse_array_scales(learner)
        return jax.vmap(lambda i: init_pair(self.unroll, learner, key=jax.random.fold_in(key, i)))(
            jnp.arange(self.num_pairs)
        )

    def estimate(self, learner: Any, state: InnerState, *, key: PRNGKeyArray) -> tuple[Estimate, InnerState]:
        def particle(index, inner: InnerState):
            noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
            noise = draw_noise(learner, self.std, key=noise_key)
            return unroll_pair(self.unroll, perturbed(learner, noise), inner, key=unroll_key), noise

        out, noise = jax.vmap(particle)(jnp.arange(self.num_pairs), state)
        difference = jnp.mean(out.losses[:, 0] - out.losses[:, 1], axis=1)
        estimate = Estimate(
            loss=jnp.mean(out.losses),
            grad=weigh(noise, difference, self.std),
            finite=jnp.mean(out.finite.astype(jnp.float32)),
            diagnostics={"restarts": jnp.mean(out.state.done.astype(jnp.float32))},
        )
        return estimate, out.state
