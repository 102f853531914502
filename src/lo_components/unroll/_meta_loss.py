import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class AbstractMetaLoss(eqx.Module):
    """What an episode's losses amount to, one window at a time.

    Each window gives a share, such that the mean of the shares over an episode's windows is the episode's meta-loss. A
    share is linear in the losses, so that the difference of two runs' shares is the share of their losses' difference.
    """

    @abc.abstractmethod
    def __call__(
        self,
        losses: Float[Array, " window"],
        before: Float[Array, ""],
        num_windows: Float[Array, ""],
        last: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """The share of one window.

        **Arguments:**

        - `losses`: of the window's steps.
        - `before`: the previous window's last loss; in an episode's first window NaN.
        - `num_windows`: of the whole episode.
        - `last`: whether the episode ends with this window.
        """


class MeanLoss(AbstractMetaLoss):
    r"""The mean loss of all steps, $\frac1T \sum_t \ell_t$: rewards fast training and a low end alike."""

    def __call__(self, losses, before, num_windows, last):
        return jnp.mean(losses)


class FinalLoss(AbstractMetaLoss):
    r"""The loss of the last step, $\ell_T$. All windows but an episode's last have no share in it.

    An episode that ends early, because it became non-finite, ends with the task's `max_loss`.
    """

    def __call__(self, losses, before, num_windows, last):
        return jnp.where(last, num_windows * losses[-1], 0.0)


class TelescopedLoss(AbstractMetaLoss):
    r"""The decrease of the loss, $\ell_T - \ell_1$, as a sum of each window's decrease.

    Its gradient is that of the final loss, but every window has a share in it. Where an episode ends early, its windows
    but the last have counted as if it would not.
    """

    def __call__(self, losses, before, num_windows, last):
        return num_windows * (losses[-1] - jnp.where(jnp.isnan(before), losses[0], before))
