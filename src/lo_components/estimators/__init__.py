"""Estimators of meta-gradients."""

from ._backprop import TruncatedBackprop as TruncatedBackprop
from ._base import AbstractEstimator as AbstractEstimator
from ._base import Estimate as Estimate
from ._es import ESSingle as ESSingle
from ._es import FullES as FullES
from ._es import TruncatedES as TruncatedES
from ._evolution import AbstractEvolutionStrategy as AbstractEvolutionStrategy
from ._evolution import EvolutionState as EvolutionState
from ._mixture import Mixture as Mixture
from ._pes import PES as PES
from ._shaping import AbstractShaping as AbstractShaping
from ._shaping import CenteredRanks as CenteredRanks
from ._shaping import ClippedDifference as ClippedDifference
from ._shaping import Difference as Difference
from ._shaping import SignOfDifference as SignOfDifference
from ._shaping import ZScores as ZScores
