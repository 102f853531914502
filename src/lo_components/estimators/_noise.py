import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree

StateT = TypeVar("StateT")
Theta = PyTree[Float[Array, "?*leaf"], "T"]

_WHOLE_EPISODE = 2**31 - 1


class AbstractNoise(eqx.Module, Generic[StateT]):
    """The noise that perturbs theta in each truncation window, and the score that weights the window's loss difference.

    The score is the gradient of the log-density of the noise with respect to its mean, which is $\\epsilon / \\sigma^2$
    for a single sample $\\epsilon$.
    """

    @abc.abstractmethod
    def init(self, theta: Theta, *, key: PRNGKeyArray) -> StateT:
        """The state of one pair before its first truncation window.

        **Arguments:**

        - `theta`: the inexact arrays of the learner.
        - `key`: any key, of the same kind as the keys for `sample`.
        """

    @abc.abstractmethod
    def sample(
        self, theta: Theta, std: Float[Array, ""], state: StateT, window: Int[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Theta, Theta, StateT]:
        """The noise of one truncation window.

        **Arguments:**

        - `theta`: the inexact arrays of the learner, with the structure, shapes and dtypes of the noise.
        - `std`: $\\sigma$ in this window.
        - `state`: the state before the window.
        - `window`: the index of the window in its episode.
        - `key`: for noise that is sampled in this window.

        **Returns:** the noise, its score in float32, and the next state.
        """


class FreshNoise(AbstractNoise[None]):
    """Noise that is resampled in each truncation window, with the score of this window's noise alone.

    It ignores how the initial state of a window depends on theta (truncation bias).
    """

    def init(self, theta: Theta, *, key: PRNGKeyArray) -> None:
        return None

    def sample(self, theta, std, state, window, *, key):
        noise = _scaled(std, _tree.normal_like(theta, key=key))
        return noise, _score(noise, std), None


class NoiseState(eqx.Module):
    """The state of [`lo_components.estimators.PersistentNoise`][].

    **Arguments:**

    - `score`: the sum of the scores of all samples in this episode.
    - `key`: the key of the last sample, from which later windows recompute it.
    - `std`: the standard deviation of the last sample.
    """

    score: PyTree[Float[Array, "..."]]
    key: PRNGKeyArray
    std: Float[Array, "..."]


class PersistentNoise(AbstractNoise[NoiseState]):
    """Noise that is resampled every few truncation windows and in each new episode. Scores are summed over an episode.

    A standard deviation that changes takes effect with the next sample.

    **Arguments:**

    - `windows_per_draw`: the number of windows that use the same noise: 1 for PES, `None` (the whole episode) for
        ES-Single. Changing it does not recompile.

    Raises `TypeError` if `windows_per_draw` is not a whole number, and `ValueError` if it is below 1.
    """

    windows_per_draw: Int[Array, ""] = eqx.field(
        default=None, converter=lambda n: _tree.whole(_WHOLE_EPISODE if n is None else n)
    )

    def __check_init__(self):
        if _tree.concrete(self.windows_per_draw) and self.windows_per_draw < 1:
            raise ValueError(f"`windows_per_draw` must be at least 1 or `None`, got {self.windows_per_draw}.")

    def init(self, theta: Theta, *, key: PRNGKeyArray) -> NoiseState:
        score = jax.tree.map(lambda t: jnp.zeros(t.shape, jnp.float32), theta)
        return NoiseState(score, key, jnp.zeros((), jnp.float32))

    def sample(self, theta, std, state, window, *, key):
        new = window % self.windows_per_draw == 0
        key, sample_std = _tree.where(new, (key, std), (state.key, state.std))
        normal = _tree.normal_like(theta, key=key)
        fresh = _scaled(std, normal)
        noise = _tree.where(new, fresh, _scaled(state.std, normal))
        score = jax.tree.map(lambda total: jnp.where(window == 0, 0.0, total), state.score)
        score = jax.tree.map(lambda total, one: jnp.where(new, total + one, total), score, _score(fresh, std))
        return noise, score, NoiseState(score, key, sample_std)


def _scaled(std: Float[Array, ""], normal: Any) -> Any:
    """Noise of standard deviation `std`, rounded to the dtypes of theta."""
    return jax.tree.map(lambda e: _tree.scaled(std, e), normal)


def _score(noise: Any, std: Float[Array, ""]) -> Any:
    r"""$\epsilon / \sigma^2$."""
    return jax.tree.map(lambda e: e.astype(jnp.float32) / jnp.where(std > 0, std, 1.0) ** 2, noise)
