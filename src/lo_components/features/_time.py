from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from ..accumulators import TensorView
from ._base import AbstractFeature, Channels


class TimeEmbedding(AbstractFeature):
    r"""The embedding $\tanh(t/\tau - 1)$ of the step $t$, counted from 0, for each time scale $\tau$.

    Values lie in $[-0.77, 1]$. Independent of the gradient and of the length of training.

    ??? cite "Source"
        Metz et al. (arXiv 2009.11243); time scales of small_fc_lopt (google/learned_optimization).
    """

    pointwise: ClassVar[bool] = True
    time_scales: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, time_scales: Sequence[float | int] = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)):
        """**Arguments:**

        - `time_scales`: the time scales $\\tau$ in steps, all positive, one channel each.

        Raises `ValueError` if `time_scales` is empty or one of them is not positive.
        """
        self.time_scales = tuple(float(tau) for tau in time_scales)

    def __check_init__(self):
        if not self.time_scales or min(self.time_scales) <= 0:
            raise ValueError(f"`time_scales` must be one or more positive numbers, got {self.time_scales}.")

    @property
    def size(self) -> int:
        return len(self.time_scales)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        taus = jnp.asarray(self.time_scales, jnp.float32)
        values = jnp.tanh(view.step.astype(jnp.float32) / taus - 1.0)
        return (Channels(view.spread(values)),)


class SineEmbedding(AbstractFeature):
    r"""The embedding $\sin(t / (\pi \tau))$ of the step $t$, counted from 0, for each time scale $\tau$.

    Independent of the gradient and of the length of training.

    ??? cite "Source"
        Metz et al. (arXiv 2009.11243).
    """

    pointwise: ClassVar[bool] = True
    time_scales: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, time_scales: Sequence[float | int] = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)):
        """**Arguments:**

        - `time_scales`: the time scales $\\tau$ in steps, one channel each.
        """
        self.time_scales = tuple(float(tau) for tau in time_scales)

    @property
    def size(self) -> int:
        return len(self.time_scales)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        taus = jnp.asarray(self.time_scales, jnp.float32)
        return (Channels(view.spread(jnp.sin(view.step.astype(jnp.float32) / (taus * jnp.pi)))),)
