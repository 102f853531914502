from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..unroll import InnerState, TruncatedUnroll
from ._base import AbstractEstimator, Estimate
from ._pairs import refuse_array_scales, signal_and_noise


class TruncatedBackprop(AbstractEstimator[InnerState]):
    r"""Backpropagation through the steps of a window: $\hat g = \frac1n \sum_i \nabla_\theta L_w$, with the state at
    the window's start held fixed.

    Exact (backpropagation through the whole unroll) where an episode is one window; biased where it has more, since it
    ignores what earlier windows' parameters owe to $\theta$. Long windows are exact in theory and useless in practice
    where training is chaotic: gradients explode. Memory grows with the window, as every step's values are kept.
    Particles whose gradient is not finite are left out.

    **Arguments:**

    - `unroll`: what particles train on, and for how long.
    - `num_particles`: $n$.

    ??? cite "Source"
        Metz et al., *Understanding and correcting pathologies in the training of learned optimizers*
        (arXiv 1810.10180), section 2.
    """

    unroll: TruncatedUnroll
    num_particles: int = eqx.field(default=16, static=True)

    def __check_init__(self):
        if self.num_particles < 1:
            raise ValueError(f"`num_particles` must be at least 1, got {self.num_particles}.")
        if not self.unroll.inner_step.reverse_mode:
            raise ValueError(
                f"`unroll` must not have a `{type(self.unroll.inner_step).__name__}`: its loop of local steps has no "
                "reverse-mode derivative. Use an evolution strategy, for instance `PES`."
            )

    def init(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        refuse_array_scales(learner)
        init = lambda i: self.unroll.init(learner, key=jax.random.fold_in(key, i))  # noqa: E731
        return jax.vmap(init)(jnp.arange(self.num_particles))

    def estimate(self, learner: Any, state: InnerState, *, key: PRNGKeyArray) -> tuple[Estimate, InnerState]:
        theta, static = eqx.partition(learner, eqx.is_inexact_array)

        def one(index, inner: InnerState):
            def loss(theta):
                out = self.unroll(eqx.combine(theta, static), inner, key=jax.random.fold_in(key, index))
                return self.unroll.share(out.losses, inner.last_loss, inner, out.state), out

            grad, out = jax.grad(loss, has_aux=True)(theta)
            return jax.tree.map(lambda g: g.astype(jnp.float32), grad), out

        grads, out = jax.vmap(one)(jnp.arange(self.num_particles), state)
        finite = [jnp.all(jnp.isfinite(g), axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)]
        usable = jnp.all(jnp.stack(finite), axis=0)
        count = jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32))
        grads = jax.tree.map(lambda g: jnp.where(usable.reshape(-1, *[1] * (g.ndim - 1)), g, 0.0), grads)
        grad = jax.tree.map(lambda g: jnp.sum(g, axis=0) / count, grads)
        diagnostics = {
            "restarts": jnp.mean(out.state.done, dtype=jnp.float32),
            "clipped_losses": jnp.mean(out.clipped),
            **signal_and_noise(grad, usable.astype(jnp.float32), grads, count),
        }
        grad = jax.tree.map(lambda g, t: g.astype(t.dtype), grad, theta)
        finite, share = jnp.mean(out.finite, dtype=jnp.float32), jnp.mean(usable, dtype=jnp.float32)
        return Estimate(jnp.mean(out.losses), grad, finite, share, diagnostics), out.state
