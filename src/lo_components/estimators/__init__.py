"""Estimators of meta-gradients."""

from ._base import AbstractEstimator as AbstractEstimator
from ._base import Estimate as Estimate
from ._es import TruncatedES as TruncatedES
from ._pes import PES as PES
from ._pes import PESState as PESState
