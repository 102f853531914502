from typing import Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._base import AbstractSchedule, Progress
from ._loss_buffer import LossBuffer, LossBufferState
from ._lstm import LSTM, LSTMState

StateT = TypeVar("StateT")

_FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)


def training_fraction(progress: Progress) -> Float[Array, " 9"]:
    r"""How far training has come: $\tanh(10\,(t/n - \tau))$ for nine fractions $\tau$ from 0.03 to 1.1.

    **Arguments:**

    - `progress`: the step $t$ and the length of training $n$.

    Raises `ValueError` if the length of training is not known.
    """
    fraction = progress.step.astype(jnp.float32) / progress.required("num_steps").astype(jnp.float32)
    return jnp.tanh(10.0 * (fraction - jnp.asarray(_FRACTIONS, jnp.float32)))


class Linear(eqx.Module):
    """An affine map $x W + b$."""

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`, `out_size`: the numbers of inputs and outputs.
        - `key`: for the initial weights.
        """
        self.weight = jax.random.truncated_normal(key, -2.0, 2.0, (in_size, out_size), jnp.float32) * in_size**-0.5
        self.bias = jnp.zeros(out_size, jnp.float32)

    def __call__(self, x: Float[Array, "*batch in_size"]) -> Float[Array, "*batch out_size"]:
        """**Arguments:**

        - `x`: the inputs.
        """
        return x @ self.weight + self.bias


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
        The scheduler of Celo (arXiv 2501.12670). The original mixes over tensors in front of the recurrent network. Since
        its inputs are the same for all tensors, that is a sum of two layers.
    """

    buffer: LossBuffer
    skip: Linear
    hidden: Linear
    lstm: LSTM
    readout: Linear

    def __init__(self, size: int = 64, *, key: PRNGKeyArray):
        """**Arguments:**

        - `size`: the number of units.
        - `key`: for the initial weights.
        """
        skip, hidden, lstm, readout = jax.random.split(key, 4)
        self.buffer = LossBuffer()
        in_size = len(_FRACTIONS) + self.buffer.size
        self.skip = Linear(in_size, size, key=skip)
        self.hidden = Linear(in_size, size, key=hidden)
        self.lstm = LSTM(size, size, key=lstm)
        self.readout = Linear(size, 1, key=readout)

    def init(self) -> LearnedScheduleState:
        return LearnedScheduleState(self.buffer.init(), self.lstm.start)

    def __call__(
        self, state: LearnedScheduleState, progress: Progress
    ) -> tuple[Float[Array, ""], LearnedScheduleState]:
        features, buffer = self.buffer(state.buffer, progress)
        x = jnp.concatenate([training_fraction(progress), features])
        lstm = self.lstm(self.skip(x) + jax.nn.relu(self.hidden(x)), state.lstm)
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
