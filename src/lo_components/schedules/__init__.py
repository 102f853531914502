"""Factors on the updates of an optimizer that change during training: fixed schedules, and learned ones."""

from .._lstm import LSTM as LSTM
from .._lstm import LSTMState as LSTMState
from ._base import AbstractSchedule as AbstractSchedule
from ._base import Progress as Progress
from ._fixed import OptaxSchedule as OptaxSchedule
from ._learned import Exponential as Exponential
from ._learned import LearnedSchedule as LearnedSchedule
from ._learned import Limited as Limited
from ._linear import Linear as Linear
from ._loss_buffer import LossBuffer as LossBuffer
from ._loss_buffer import LossBufferState as LossBufferState
from ._training_fraction import TrainingFraction as TrainingFraction
from ._warm_up import WarmUpAndDecay as WarmUpAndDecay
