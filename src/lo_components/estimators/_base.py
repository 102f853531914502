import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

StateT = TypeVar("StateT")


class Estimate(eqx.Module):
    """A meta-gradient estimate from one window.

    **Arguments:**

    - `loss`: the mean per-step loss over particles and steps.
    - `grad`: the structure of the learner's inexact arrays.
    - `finite`: the share of particles (both members of a pair count) whose losses and parameters stayed finite.
    - `usable`: the share of pairs (or particles) that `grad` is made of; 0: there is no estimate, and `grad` is zero.
    - `diagnostics`: named scalars, which meta-training logs. Those of this package:
        - `restarts`: the share of particles whose episode ends with the window.
        - `clipped_losses`: the share of steps whose loss was clipped at the task's `max_loss`, or not finite.
        - `reduced_differences`: the share of pairs whose loss difference shaping made smaller.
        - `variance`: of the estimate: the trace of its covariance, from the spread of the pairs as if they were
            independent (which ranks and z-scores are not); NaN with fewer than two.
        - `signal`: what the variance leaves of the estimate's squared norm. The ratio of the two, each averaged over
            meta-steps, is the signal-to-noise ratio.
    """

    loss: Float[Array, ""]
    grad: PyTree[Float[Array, "..."]]
    finite: Float[Array, ""]
    usable: Float[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]


class AbstractEstimator(eqx.Module, Generic[StateT]):
    """Estimates the gradient of the meta-loss with respect to a learner's arrays, one window at a time.

    The estimand is the gradient of an episode's meta-loss, smoothed where the estimator perturbs.
    """

    @abc.abstractmethod
    def init(self, learner: Any, *, key: PRNGKeyArray) -> StateT:
        """The state of all particles before the first window."""

    @abc.abstractmethod
    def estimate(self, learner: Any, state: StateT, *, key: PRNGKeyArray) -> tuple[Estimate, StateT]:
        """An estimate from the next window of every particle, and their next state."""
