from typing import Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._lstm import LSTM, LSTMState
from ._base import AbstractSchedule, Progress
from ._linear import Linear
from ._loss_buffer import LossBuffer, LossBufferState
from ._training_fraction import TrainingFraction

StateT = TypeVar("StateT")


class LearnedScheduleState(NamedTuple):
    """State of a [`lo_components.schedules.LearnedSchedule`][].

    **Arguments:**

    - `buffer`: of the losses.
    - `lstm`: of the recurrent network.
    """

    buffer: LossBufferState
    lstm: LSTMState


class LearnedSchedule(AbstractSchedule[LearnedScheduleState]):
    """A number of either sign, by a recurrent network that sees the time and the loss. It is the same for all tensors.

    Wrap it in [`lo_components.schedules.Exponential`][] or [`lo_components.schedules.Limited`][] for a positive
    factor. Needs the loss and the length of training.

    ??? cite "Source"
        The scheduler of Celo (arXiv 2501.12670). The original mixes over tensors in front of the recurrent network;
        since its inputs are the same for all tensors, that is a sum of two layers.
    """

    fraction: TrainingFraction
    buffer: LossBuffer
    skip: Linear
    rectified: Linear
    lstm: LSTM
    start: LSTMState
    readout: Linear

    def __init__(self, size: int = 64, *, key: PRNGKeyArray):
        """**Arguments:**

        - `size`: the number of units.
        - `key`: for the initial weights.
        """
        skip, rectified, lstm, readout = jax.random.split(key, 4)
        self.fraction, self.buffer = TrainingFraction(), LossBuffer()
        in_size = self.fraction.size + self.buffer.size
        self.skip = Linear(in_size, size, key=skip)
        self.rectified = Linear(in_size, size, key=rectified)
        self.lstm = LSTM(size, size, key=lstm)
        self.start = self.lstm.zeros()
        self.readout = Linear(size, 1, key=readout)

    def init(self) -> LearnedScheduleState:
        return LearnedScheduleState(self.buffer.init(), self.start)

    def __call__(
        self, state: LearnedScheduleState, progress: Progress
    ) -> tuple[Float[Array, ""], LearnedScheduleState]:
        features, buffer = self.buffer(state.buffer, progress)
        x = jnp.concatenate([self.fraction(progress), features])
        lstm = self.lstm(self.skip(x) + jax.nn.relu(self.rectified(x)), state.lstm)
        return self.readout(lstm.hidden)[0], LearnedScheduleState(buffer, lstm)


class Exponential(AbstractSchedule[StateT], Generic[StateT]):
    r"""$c\, e^{y}$ for the output $y$ of another schedule.

    **Arguments:**

    - `schedule`: the other schedule.
    - `scale`: $c$.
    """

    schedule: AbstractSchedule[StateT]
    scale: float = eqx.field(default=1.0, static=True)

    def init(self) -> StateT:
        return self.schedule.init()

    def __call__(self, state: StateT, progress: Progress) -> tuple[Float[Array, ""], StateT]:
        y, state = self.schedule(state, progress)
        return self.scale * jnp.exp(y), state


class Limited(AbstractSchedule[StateT], Generic[StateT]):
    """The output of another schedule, clipped between two values.

    **Arguments:**

    - `schedule`: the other schedule.
    - `lowest`, `highest`: the two values.
    """

    schedule: AbstractSchedule[StateT]
    lowest: float = eqx.field(static=True)
    highest: float = eqx.field(static=True)

    def init(self) -> StateT:
        return self.schedule.init()

    def __call__(self, state: StateT, progress: Progress) -> tuple[Float[Array, ""], StateT]:
        y, state = self.schedule(state, progress)
        return jnp.clip(y, self.lowest, self.highest), state
