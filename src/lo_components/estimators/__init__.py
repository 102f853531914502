"""Estimators of meta-gradients."""

from ._backprop import TruncatedBackprop as TruncatedBackprop
from ._base import AbstractEstimator as AbstractEstimator
from ._base import Estimate as Estimate
from ._es import GPES as GPES
from ._es import PES as PES
from ._es import ESSingle as ESSingle
from ._es import TruncatedES as TruncatedES
from ._evolution import EvolutionState as EvolutionState
from ._evolution import EvolutionStrategy as EvolutionStrategy
from ._evolution import FullES as FullES
from ._mixture import Mixture as Mixture
from ._noise import AbstractNoise as AbstractNoise
from ._noise import FreshNoise as FreshNoise
from ._noise import NoiseState as NoiseState
from ._noise import PersistentNoise as PersistentNoise
from ._shaping import AbstractShaping as AbstractShaping
from ._shaping import CenteredRanks as CenteredRanks
from ._shaping import ClippedDifference as ClippedDifference
from ._shaping import Difference as Difference
from ._shaping import SignOfDifference as SignOfDifference
from ._shaping import ZScores as ZScores
