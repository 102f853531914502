import abc
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._learner import Learner

StateT = TypeVar("StateT")

# The columns of the log of meta-training, which are reserved: no diagnostic may have one of these names.
COLUMNS = frozenset(
    {"step", "loss", "meta_loss", "finite", "grad_norm", "usable", "skipped", "diagnostics"}
    | {"inner_steps", "learning_rate", "seconds", "steps_per_second"}
)


class Estimate(eqx.Module):
    """A meta-gradient estimate from one truncation window of every particle.

    **Arguments:**

    - `loss`: the mean per-step loss over particles and steps.
    - `meta_loss`: the mean over particles (both members of a pair count) of the window's contribution to the meta-loss.
        Its average over the windows of an episode is the meta-loss.
    - `grad`: the meta-gradient, in the structure of the learner's inexact arrays.
    - `finite`: the fraction of particles (both members of a pair count) whose losses and parameters stayed finite.
    - `usable`: the fraction of pairs (or particles) that contribute to `grad`. If it is 0, there is no estimate, and
        `grad` is zero.
    - `inner_steps`: the inner steps of this estimate, summed over particles (both members of a pair count).
    - `diagnostics`: named scalars, which meta-training logs. The estimators of this package report
        - `restarts`: the fraction of particles whose episode ends with the window.
        - `clipped_losses`: the fraction of steps whose loss was clipped at the task's `max_loss`, or not finite.
        - `reduced_differences`: the fraction of pairs whose loss difference was reduced by shaping.
        - `variance`: the variance of the estimate (the trace of its covariance), from the spread of the pairs under
            the assumption that they are independent (with ranks and z-scores they are not); infinite with fewer than
            two.
        - `signal`: the squared norm of the estimate minus its variance. The mean of `signal` over meta-steps divided by
            the mean of `variance` is the signal-to-noise ratio.

    `Estimate.reserved` are the names of the other columns of the log, such as `loss` and `step`.

    Raises `ValueError` if a diagnostic has a reserved name.
    """

    reserved: ClassVar[frozenset[str]] = COLUMNS

    loss: Float[Array, ""]
    meta_loss: Float[Array, ""]
    grad: PyTree[Float[Array, "..."]]
    finite: Float[Array, ""]
    usable: Float[Array, ""]
    inner_steps: Int[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]

    def __check_init__(self):
        if taken := sorted(self.reserved & set(self.diagnostics)):
            raise ValueError(
                f"`diagnostics` must not have a `{taken[0]}`, which is another column of the log; rename it."
            )


class AbstractEstimator(eqx.Module, Generic[StateT]):
    """Estimates the gradient of the meta-loss with respect to a learner's arrays, one truncation window at a time.

    The estimand is the gradient of the meta-loss of an episode; for estimators that perturb theta, of the smoothed
    meta-loss.
    """

    @abc.abstractmethod
    def init(self, learner: Learner, *, key: PRNGKeyArray) -> StateT:
        """The state of all particles before the first window.

        **Arguments:**

        - `learner`: an optimizer or an aggregator.
        - `key`: for initial parameters, horizons and noise.
        """

    @abc.abstractmethod
    def estimate(self, learner: Learner, state: StateT, *, key: PRNGKeyArray) -> tuple[Estimate, StateT]:
        """An estimate from the next window of every particle, and the next state of the particles.

        **Arguments:**

        - `learner`: the learner at whose arrays the gradient is estimated.
        - `state`: from `init` or the previous estimate.
        - `key`: for noise and batches.
        """


def signal_and_noise(
    grad: Float[Array, " size"],
    squared_weights: Float[Array, " n"],
    vectors: Float[Array, "n size"],
    count: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    r"""The variance of a mean $g$ of $n$ weighted vectors, and $\lVert g\rVert^2$ minus this variance.

    The variance is the trace of the covariance of the mean, estimated from the spread of the vectors.
    """
    norms = jnp.sum(jnp.square(vectors), axis=1)
    signal = jnp.sum(jnp.square(grad))
    spread = jnp.maximum(jnp.sum(squared_weights * norms) / count - signal, 0.0)
    variance = jnp.where(count > 1, spread / jnp.maximum(count - 1.0, 1.0), jnp.inf)
    return {"variance": variance, "signal": signal - variance}
