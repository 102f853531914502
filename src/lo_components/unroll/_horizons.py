import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


class AbstractHorizon(eqx.Module):
    """How long an episode of inner training lasts, in steps."""

    @abc.abstractmethod
    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        """The length of a new episode, a positive multiple of `window`."""


class ConstantHorizon(AbstractHorizon):
    """Every episode lasts `steps`, rounded up to whole windows."""

    steps: int = eqx.field(static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        return jnp.asarray(-(-self.steps // window) * window, jnp.int32)


class LogUniformHorizon(AbstractHorizon):
    """Lengths whose logarithm is uniform between those of `min_steps` and `max_steps`, rounded to whole windows.

    Rounded lengths stay within the bounds; where no whole number of windows does, `min_steps` is rounded up.

    ??? cite "Source"
        The truncation schedule of muLO and LAgg-A meta-training, 100 to 1000 steps.
    """

    min_steps: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __check_init__(self):
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(
                f"`min_steps` and `max_steps` must satisfy 1 <= min_steps <= max_steps, got {self.min_steps} and "
                f"{self.max_steps}."
            )

    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        log_steps = jax.random.uniform(key, (), jnp.float32, math.log(self.min_steps), math.log(self.max_steps))
        windows = jnp.round(jnp.exp(log_steps) / window).astype(jnp.int32)
        fewest = -(-self.min_steps // window)
        return window * jnp.clip(windows, fewest, max(fewest, self.max_steps // window))
