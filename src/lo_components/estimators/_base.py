import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..unroll import TruncatedUnroll

StateT = TypeVar("StateT")


class Estimate(eqx.Module):
    """A meta-gradient estimate from one window.

    **Arguments:**

    - `loss`: the mean meta-loss over particles and steps.
    - `grad`: the structure of the learner's inexact arrays.
    - `finite`: the share of particles whose losses and parameters stayed finite, in `[0, 1]`.
    - `diagnostics`: named scalars.
    """

    loss: Float[Array, ""]
    grad: PyTree[Float[Array, "..."]]
    finite: Float[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]


class AbstractEstimator(eqx.Module, Generic[StateT]):
    """Estimates the gradient of the meta-loss with respect to a learner's arrays, one window at a time.

    The estimand is the gradient of the mean per-step loss over an episode, smoothed where the estimator perturbs.
    """

    unroll: AbstractVar[TruncatedUnroll]

    @abc.abstractmethod
    def init(self, learner: Any, *, key: PRNGKeyArray) -> StateT:
        """The state of all particles before the first window."""

    @abc.abstractmethod
    def estimate(self, learner: Any, state: StateT, *, key: PRNGKeyArray) -> tuple[Estimate, StateT]:
        """An estimate from the next window of every particle, and their next state."""
