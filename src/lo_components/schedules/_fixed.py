from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractSchedule, Progress


class OptaxSchedule(AbstractSchedule[tuple[()]]):
    """A schedule of optax, a function of the step: `OptaxSchedule(optax.cosine_decay_schedule, 1.0, decay_steps=1000)`.

    `OptaxSchedule(optax.constant_schedule, 0.1)` is a constant factor. An array among the arguments is meta-learned.
    """

    schedule: Callable[..., Callable] = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(self, schedule: Callable[..., Callable], *args: Any, **kwargs: Any):
        """**Arguments:**

        - `schedule`: a function that returns a schedule, such as `optax.cosine_decay_schedule`.
        - `args`, `kwargs`: its arguments.
        """
        self.schedule = schedule
        self.args = args
        self.kwargs = kwargs

    def init(self) -> tuple[()]:
        return ()

    def __call__(self, state: tuple[()], progress: Progress) -> tuple[Float[Array, ""], tuple[()]]:
        return jnp.asarray(self.schedule(*self.args, **self.kwargs)(progress.step), jnp.float32), state
