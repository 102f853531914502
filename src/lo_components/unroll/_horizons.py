import abc
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from .. import _tree


def whole(steps: Any) -> Int[Array, ""]:
    """A whole number as an int32 array."""
    return jnp.asarray(steps if isinstance(steps, jax.Array) else operator.index(steps), jnp.int32)


class AbstractHorizon(eqx.Module):
    """How long an episode of inner training lasts, in steps: an array, so that another length compiles nothing anew."""

    @abc.abstractmethod
    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        """The length of a new episode, a positive multiple of `window`."""


class ConstantHorizon(AbstractHorizon):
    """Every episode lasts `steps`, rounded up to whole windows."""

    steps: Int[Array, ""] = eqx.field(converter=whole)

    def __check_init__(self):
        if _tree.known(self.steps) and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        return -(-self.steps // window) * window


class LogUniformHorizon(AbstractHorizon):
    """Lengths whose logarithm is uniform between those of `min_steps` and `max_steps`, rounded to whole windows.

    Rounded lengths stay within the bounds; where no whole number of windows does, `min_steps` is rounded up.

    ??? cite "Source"
        The truncation schedule of muLO and LAgg-A meta-training, 100 to 1000 steps.
    """

    min_steps: Int[Array, ""] = eqx.field(converter=whole)
    max_steps: Int[Array, ""] = eqx.field(converter=whole)

    def __check_init__(self):
        if _tree.known(self.min_steps, self.max_steps) and not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(
                f"`min_steps` and `max_steps` must satisfy 1 <= min_steps <= max_steps, got {self.min_steps} and "
                f"{self.max_steps}."
            )

    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        bounds = jnp.log(jnp.stack([self.min_steps, self.max_steps]).astype(jnp.float32))
        log_steps = jax.random.uniform(key, (), jnp.float32, *bounds)
        windows = jnp.round(jnp.exp(log_steps) / window).astype(jnp.int32)
        fewest = -(-self.min_steps // window)
        return window * jnp.clip(windows, fewest, jnp.maximum(fewest, self.max_steps // window))
