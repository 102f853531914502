"""Step rules map a head's outputs to an update."""

from ._base import AbstractStepRule as AbstractStepRule
from ._combine import Pooled as Pooled
from ._combine import Sum as Sum
from ._combine import Times as Times
from ._direction import Direction as Direction
from ._direction import DirectionMagnitude as DirectionMagnitude
from ._direction import Fixed as Fixed
from ._direction import Magnitude as Magnitude
from ._transforms import AbstractTransform as AbstractTransform
from ._transforms import Flattened as Flattened
from ._transforms import Orthogonalized as Orthogonalized
from ._transforms import RelativeToParameter as RelativeToParameter
from ._transforms import RMSOne as RMSOne
from ._transforms import TimesLastControl as TimesLastControl
