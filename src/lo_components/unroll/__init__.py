"""Inner training in truncation windows."""

from ._base import Episode as Episode
from ._base import InnerState as InnerState
from ._base import TrainState as TrainState
from ._base import TruncatedUnroll as TruncatedUnroll
from ._base import UnrollOutput as UnrollOutput
from ._horizons import AbstractHorizon as AbstractHorizon
from ._horizons import ConstantHorizon as ConstantHorizon
from ._horizons import HorizonSchedule as HorizonSchedule
from ._horizons import LogUniformHorizon as LogUniformHorizon
from ._inner import AbstractInnerStep as AbstractInnerStep
from ._inner import GradientStep as GradientStep
from ._inner import LocalRound as LocalRound
from ._meta_loss import AbstractMetaLoss as AbstractMetaLoss
from ._meta_loss import FinalLoss as FinalLoss
from ._meta_loss import LogLoss as LogLoss
from ._meta_loss import MeanLoss as MeanLoss
from ._meta_loss import TelescopedLoss as TelescopedLoss
from ._scaled import scaled_for as scaled_for
from ._scaled import scaled_for_model as scaled_for_model
