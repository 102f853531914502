import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class AbstractMetaLoss(eqx.Module):
    """Maps the losses of an episode to its meta-loss, one truncation window at a time.

    The meta-loss of an episode is the mean of the contributions of its windows. A contribution may be any function of
    the losses, for instance the logarithm of their mean. Estimators that differentiate, such as
    [`lo_components.estimators.TruncatedBackprop`][], need it to be differentiable.
    """

    @abc.abstractmethod
    def __call__(
        self,
        losses: Float[Array, " window"],
        previous_loss: Float[Array, ""],
        num_windows: Float[Array, ""],
        last: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """The contribution of one truncation window.

        **Arguments:**

        - `losses`: one per step of the window.
        - `previous_loss`: the last loss before the window; in the first window of an episode, the loss of the initial
            parameters.
        - `num_windows`: the number of windows in the episode.
        - `last`: whether the episode ends with this window.
        """


class MeanLoss(AbstractMetaLoss):
    r"""The mean loss of all steps, $\frac1T \sum_t \ell_t$, which rewards both fast training and a low final loss."""

    def __call__(self, losses, previous_loss, num_windows, last):
        return jnp.mean(losses)


class FinalLoss(AbstractMetaLoss):
    r"""The loss of the last step, $\ell_T$. Every truncation window except the last contributes 0.

    The last window contributes $\ell_T$ times the number of windows, so that the mean over windows is $\ell_T$. An
    episode that ends early because it became non-finite ends with the task's `max_loss`.
    """

    def __call__(self, losses, previous_loss, num_windows, last):
        return jnp.where(last, num_windows * losses[-1], 0.0)


class TelescopedLoss(AbstractMetaLoss):
    r"""The change of the loss over an episode, $\ell_T - \ell_0$, as a sum of the changes over its truncation windows.

    $\ell_0$ is the loss of the initial parameters, which does not depend on the learner, so the gradient is that of the
    final loss. Unlike [`lo_components.unroll.FinalLoss`][], every window contributes: its change times the number of
    windows, so that the mean over windows is the total change. If an episode ends early, only its last window is
    multiplied by the number of windows that were run; all earlier windows were multiplied by the planned number.
    """

    def __call__(self, losses, previous_loss, num_windows, last):
        return num_windows * (losses[-1] - previous_loss)


class LogLoss(AbstractMetaLoss):
    r"""The logarithm of the loss, so that a task counts as much when its loss is small: for the mean losses
    $\bar\ell_w$ of $W$ windows, $(1 - f) \frac1W \sum_w \ln(\bar\ell_w + c) + f \ln(\bar\ell_W + c)$.

    The last window contributes the second term times $W$, and the others only the first term.

    **Arguments:**

    - `final`: $f$, the weight of the last window, between 0 and 1.
    - `floor`: $c$, positive, so that a loss near 0 does not outweigh all others. Negative losses count as 0.

    Raises `ValueError` if `final` is out of range or `floor` is not positive.
    """

    final: float = eqx.field(default=0.5, static=True)
    floor: float = eqx.field(default=0.02, static=True)

    def __check_init__(self):
        if not 0.0 <= self.final <= 1.0:
            raise ValueError(f"`final` must be between 0 and 1, got {self.final}.")
        if self.floor <= 0.0:
            raise ValueError(f"`floor` must be positive, got {self.floor}.")

    def __call__(self, losses, previous_loss, num_windows, last):
        loss = jnp.log(jnp.maximum(jnp.mean(losses), 0.0) + self.floor)
        return (1.0 - self.final) * loss + jnp.where(last, self.final * num_windows * loss, 0.0)
