import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import _tree
from .._learner import Learner, partition
from ..unroll import InnerState, TruncatedUnroll
from ._base import AbstractEstimator, Estimate, signal_and_noise


class TruncatedBackprop(AbstractEstimator[InnerState]):
    r"""Backpropagation through the steps of a truncation window: $\hat g = \frac1n \sum_i \nabla_\theta L_w$, with the
    initial state of the window held fixed.

    If an episode is one window, this is exact (backpropagation through the whole unroll). Otherwise it is biased, since
    it ignores how the initial state of a window depends on $\theta$ (truncation bias). Long windows have less bias, but
    their gradients explode if training is chaotic. Memory grows with the window, since the values of every step are
    kept. Particles whose gradient is not finite are left out.

    **Arguments:**

    - `unroll`: inner training.
    - `num_particles`: $n$.

    Raises `ValueError` if `num_particles` is below 1, or if the inner step of `unroll` has no reverse-mode derivative.

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

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> InnerState:
        def one(index):
            return self.unroll.init(learner, key=jax.random.fold_in(key, index))

        return jax.vmap(one)(jnp.arange(self.num_particles))

    def estimate(self, learner: Learner, state: InnerState, *, key: PRNGKeyArray) -> tuple[Estimate, InnerState]:
        theta, rest = partition(learner)

        def one(index, inner: InnerState):
            def meta_loss(theta):
                out = self.unroll(eqx.combine(theta, rest), inner, key=jax.random.fold_in(key, index))
                return self.unroll.contribution(out.losses, out.previous_loss, out.state.episode), out

            (value, out), grad = jax.value_and_grad(meta_loss, has_aux=True)(theta)
            return value, _tree.raveled(grad), out

        meta_losses, grads, out = jax.vmap(one)(jnp.arange(self.num_particles), state)
        usable = jnp.all(jnp.isfinite(grads), axis=1)
        count = jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32))
        grads = jnp.where(usable[:, None], grads, 0.0)
        grad = jnp.sum(grads, axis=0) / count
        estimate = Estimate(
            loss=jnp.mean(out.losses),
            meta_loss=jnp.mean(meta_losses),
            grad=_tree.unraveled(grad, theta),
            finite=jnp.mean(out.finite, dtype=jnp.float32),
            usable=jnp.mean(usable, dtype=jnp.float32),
            inner_steps=jnp.asarray(self.num_particles * self.unroll.window, jnp.int32),
            diagnostics={
                "restarts": jnp.mean(out.state.episode.done, dtype=jnp.float32),
                "clipped_losses": jnp.mean(out.clipped),
                **signal_and_noise(grad, usable.astype(jnp.float32), grads, count),
            },
        )
        return estimate, out.state
