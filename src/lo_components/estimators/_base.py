import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._learner import Learner

StateT = TypeVar("StateT")

# The columns of the log of meta-training, which no diagnostic may be called.
COLUMNS = frozenset(
    {"step", "loss", "meta_loss", "finite", "grad_norm", "usable", "skipped", "diagnostics", "steps_per_second"}
)


class Estimate(eqx.Module):
    """A meta-gradient estimate from one truncation window of every particle.

    **Arguments:**

    - `loss`: the mean per-step loss over particles and steps.
    - `meta_loss`: the mean over particles of the window's contribution to the meta-loss. Averaged over the windows of
        an episode this is the meta-loss. It counts both members of a pair.
    - `grad`: the structure of the learner's inexact arrays.
    - `finite`: the fraction of particles (both members of a pair count) whose losses and parameters stayed finite.
    - `usable`: the fraction of pairs (or particles) that contribute to `grad`. At 0 there is no estimate, and `grad` is
        zero.
    - `diagnostics`: named scalars, which meta-training logs. The estimators of this package report
        - `restarts`: the fraction of particles whose episode ends with the window.
        - `clipped_losses`: the fraction of steps whose loss was clipped at the task's `max_loss`, or not finite.
        - `reduced_differences`: the fraction of pairs whose loss difference was reduced by shaping.
        - `variance`: the variance of the estimate (the trace of its covariance), from the spread of the pairs as if
            they were independent, which ranks and z-scores are not; NaN with fewer than two pairs.
        - `signal`: the squared norm of the estimate minus its variance. The ratio of the two, each averaged over
            meta-steps, is the signal-to-noise ratio.

    Raises `ValueError` if a diagnostic has the name of another column of the log, such as `loss` or `step`.
    """

    loss: Float[Array, ""]
    meta_loss: Float[Array, ""]
    grad: PyTree[Float[Array, "..."]]
    finite: Float[Array, ""]
    usable: Float[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]

    def __check_init__(self):
        if taken := sorted(COLUMNS & set(self.diagnostics)):
            raise ValueError(f"The log has a column `{taken[0]}` of its own; give this diagnostic another name.")


class AbstractEstimator(eqx.Module, Generic[StateT]):
    """Estimates the gradient of the meta-loss with respect to a learner's arrays, one truncation window at a time.

    The estimand is the gradient of the meta-loss of an episode, smoothed if the estimator perturbs theta.
    """

    @abc.abstractmethod
    def init(self, learner: Learner, *, key: PRNGKeyArray) -> StateT:
        """The state of all particles before the first window."""

    @abc.abstractmethod
    def estimate(self, learner: Learner, state: StateT, *, key: PRNGKeyArray) -> tuple[Estimate, StateT]:
        """An estimate from the next window of every particle, and their next state."""


def signal_and_noise(
    grad: PyTree[Float[Array, "..."]],
    squared_weights: Float[Array, " n"],
    vectors: PyTree[Float[Array, "n ..."]],
    count: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    r"""The variance of a mean $g$ of $n$ weighted vectors, and $\lVert g\rVert^2$ minus that.

    The variance is the trace of the covariance of the mean, estimated from the spread of the vectors.
    """
    norms = sum(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))) for v in jax.tree.leaves(vectors))
    signal = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grad))
    spread = jnp.maximum(jnp.sum(squared_weights * norms) / count - signal, 0.0)
    variance = jnp.where(count > 1, spread / jnp.maximum(count - 1.0, 1.0), jnp.nan)
    return {"variance": variance, "signal": signal - variance}
