"""Step rules map a head's outputs to an update."""

from ._base import AbstractStepRule as AbstractStepRule
from ._direction import Direction as Direction
from ._direction import DirectionMagnitude as DirectionMagnitude
