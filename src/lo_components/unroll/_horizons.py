import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from .. import _tree
from .._tree import whole


class AbstractHorizon(eqx.Module):
    """Samples the length of an episode of inner training in steps. Changing it does not recompile."""

    @abc.abstractmethod
    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        """The length of a new episode, a positive multiple of the truncation window `window`."""


class ConstantHorizon(AbstractHorizon):
    """Every episode has `steps` steps, rounded up to a whole number of truncation windows.

    **Arguments:**

    - `steps`: the number of steps, at least 1.

    Raises `TypeError` if `steps` is not a whole number, and `ValueError` if it is below 1.
    """

    steps: Int[Array, ""] = eqx.field(converter=whole)

    def __check_init__(self):
        if _tree.concrete(self.steps) and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def sample(self, window: int, *, key: PRNGKeyArray) -> Int[Array, ""]:
        return -(-self.steps // window) * window


class LogUniformHorizon(AbstractHorizon):
    """Log-uniform lengths between `min_steps` and `max_steps`, rounded to whole truncation windows.

    Rounded lengths stay within the bounds. If no multiple of the window lies within them, `min_steps` is rounded up.

    **Arguments:**

    - `min_steps`, `max_steps`: the bounds, inclusive.

    Raises `TypeError` if a bound is not a whole number, and `ValueError` unless `1 <= min_steps <= max_steps`.

    ??? cite "Source"
        The horizons in meta-training of muLO and LAgg-A, from 100 to 1000 steps.
    """

    min_steps: Int[Array, ""] = eqx.field(converter=whole)
    max_steps: Int[Array, ""] = eqx.field(converter=whole)

    def __check_init__(self):
        if _tree.concrete(self.min_steps, self.max_steps) and not 1 <= self.min_steps <= self.max_steps:
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


def as_horizon(horizon: Any) -> AbstractHorizon:
    """The horizon itself; for a number of steps, a `ConstantHorizon`."""
    if isinstance(horizon, AbstractHorizon):
        return horizon
    try:
        steps = whole(horizon)
    except TypeError:
        raise TypeError(
            f"`horizon` must be a number of steps or a horizon such as `LogUniformHorizon(100, 1000)`, got {horizon!r}."
        ) from None
    if _tree.concrete(steps) and steps < 1:
        raise ValueError(f"`horizon` must be at least 1, got {steps}.")
    return ConstantHorizon(steps)
