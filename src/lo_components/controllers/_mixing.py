from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..schedules import LSTM, Linear, LossBuffer, LossBufferState, LSTMState, Progress, TrainingFraction
from ._base import AbstractController


class MixingState(NamedTuple):
    """State of a [`lo_components.controllers.MixingController`][].

    **Arguments:**

    - `buffer`: of the losses.
    - `lstm`: of the recurrent network, one row for each tensor.
    """

    buffer: LossBufferState
    lstm: LSTMState


class MixingController(AbstractController[MixingState]):
    r"""VeLO's controller: a recurrent network with one row for each tensor, and a maximum over tensors in front of it.

    Its input $x$ is the time, the loss buffer and the summary of the tensor. The recurrent network sees
    $L_2(x) + \max \mathrm{relu}(L_1(x))$, with the maximum over all tensors, and a linear layer gives the controls.
    Needs the loss and the length of training.

    ??? cite "Source"
        VeLO (arXiv 2211.09760).
    """

    fraction: TrainingFraction
    buffer: LossBuffer
    skip: Linear
    rectified: Linear
    lstm: LSTM
    start: LSTMState
    readout: Linear
    recurrent: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        size: int = 512,
        *,
        buffer: LossBuffer = LossBuffer(),
        recurrent: bool = True,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`: the number of numbers in a summary.
        - `out_size`: the number of controls.
        - `size`: the number of units.
        - `buffer`: of the losses.
        - `recurrent`: whether the network keeps its state from step to step. An early version of VeLO did not.
        - `key`: for the initial weights.
        """
        skip, rectified, lstm, readout = jax.random.split(key, 4)
        self.fraction, self.buffer = TrainingFraction(), buffer
        inputs = self.fraction.size + buffer.size + in_size
        self.skip = Linear(inputs, size, key=skip)
        self.rectified = Linear(inputs, size, key=rectified)
        self.lstm = LSTM(size, size, key=lstm)
        self.start = self.lstm.zeros()
        self.readout = Linear(size, out_size, key=readout)
        self.recurrent = recurrent

    @property
    def in_size(self) -> int:
        return self.skip.weight.shape[0] - self.fraction.size - self.buffer.size

    @property
    def out_size(self) -> int:
        return self.readout.weight.shape[1]

    def init(self, num_tensors: int) -> MixingState:
        return MixingState(self.buffer.init(), self.start.repeated(num_tensors))

    def __call__(
        self, summaries: Float[Array, "tensors in_size"], state: MixingState, progress: Progress
    ) -> tuple[Float[Array, "tensors out_size"], MixingState]:
        features, buffer = self.buffer(state.buffer, progress)
        common = jnp.concatenate([self.fraction(progress), features])
        common = jnp.broadcast_to(common, (summaries.shape[0], *common.shape))
        x = jnp.concatenate([common, summaries], axis=1)
        mixed = jnp.max(jax.nn.relu(self.rectified(x)), axis=0, keepdims=True)
        lstm = self.lstm(self.skip(x) + mixed, state.lstm)
        return self.readout(lstm.hidden), MixingState(buffer, lstm if self.recurrent else state.lstm)
