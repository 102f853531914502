import abc
import itertools
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
    def sample(self, window: int, *, windows_so_far: Int[Array, ""], key: PRNGKeyArray) -> Int[Array, ""]:
        """The length of a new episode in steps.

        [`lo_components.unroll.TruncatedUnroll`][] rounds it up to a positive multiple of the truncation window.

        **Arguments:**

        - `window`: the steps of a truncation window.
        - `windows_so_far`: the truncation windows that this particle has unrolled before the episode, which is the
            number of meta-steps so far. Curricula depend on it.
        - `key`: for random lengths.
        """


class ConstantHorizon(AbstractHorizon):
    """Every episode has `steps` steps, rounded up to whole truncation windows: 12 steps are 15 with windows of 5.

    **Arguments:**

    - `steps`: the number of steps, at least 1.

    Raises `TypeError` if `steps` is not a whole number, and `ValueError` if it is below 1.
    """

    steps: Int[Array, ""] = eqx.field(converter=whole)

    def __check_init__(self):
        if _tree.concrete(self.steps) and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def sample(self, window: int, *, windows_so_far: Int[Array, ""], key: PRNGKeyArray) -> Int[Array, ""]:
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

    def sample(self, window: int, *, windows_so_far: Int[Array, ""], key: PRNGKeyArray) -> Int[Array, ""]:
        bounds = jnp.log(jnp.stack([self.min_steps, self.max_steps]).astype(jnp.float32))
        log_steps = jax.random.uniform(key, (), jnp.float32, *bounds)
        windows = jnp.round(jnp.exp(log_steps) / window).astype(jnp.int32)
        fewest = -(-self.min_steps // window)
        return window * jnp.clip(windows, fewest, jnp.maximum(fewest, self.max_steps // window))


class HorizonSchedule(AbstractHorizon):
    """A curriculum: another horizon from each of several numbers of truncation windows on.

    `HorizonSchedule((0, LogUniformHorizon(20, 100)), (1000, 500))` samples 20 to 100 steps in the first 1000
    meta-steps, and takes 500 steps for every episode that begins later. The number of windows is part of the state of
    each particle, so a run that is resumed continues its curriculum. Changing the numbers does not recompile.

    **Arguments:**

    - `stages`: pairs of a number of truncation windows, 0 in the first pair and increasing, and the horizon from there
        on, which may be a number of steps.

    Raises `TypeError` if a stage is not a pair of a whole number and a horizon, and `ValueError` unless the numbers of
    windows begin at 0 and increase.
    """

    starts: tuple[Int[Array, ""], ...]
    horizons: tuple[AbstractHorizon, ...]

    def __init__(self, *stages: Any):
        try:
            self.starts = tuple(whole(windows) for windows, _ in stages)
        except (TypeError, ValueError):
            raise TypeError("Each of `stages` must be a pair `(windows, horizon)`, such as `(1000, 500)`.") from None
        self.horizons = tuple(as_horizon(horizon) for _, horizon in stages)

    def __check_init__(self):
        if _tree.concrete(*self.starts):
            starts = [int(start) for start in self.starts]
            if starts[:1] != [0] or any(b <= a for a, b in itertools.pairwise(starts)):
                raise ValueError(f"The numbers of windows in `stages` must begin at 0 and increase, got {starts}.")

    def sample(self, window: int, *, windows_so_far: Int[Array, ""], key: PRNGKeyArray) -> Int[Array, ""]:
        lengths = [horizon.sample(window, windows_so_far=windows_so_far, key=key) for horizon in self.horizons]
        length = lengths[0]
        for start, later in zip(self.starts[1:], lengths[1:], strict=True):
            length = jnp.where(windows_so_far >= start, later, length)
        return length


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
