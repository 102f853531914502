"""Aggregators combine the workers' deltas into one update per round."""

from ._base import AbstractAggregator as AbstractAggregator
from ._base import AbstractMaskedAggregator as AbstractMaskedAggregator
from ._base import AggregatorState as AggregatorState
from ._cost import RoundCost as RoundCost
from ._cost import round_cost as round_cost
from ._learned import LearnedAggregator as LearnedAggregator
from ._mean import Mean as Mean
from ._outer import OuterOptimizer as OuterOptimizer
from ._scheduled import Scheduled as Scheduled
from ._scheduled import ScheduledState as ScheduledState
from ._slowmo import SlowMo as SlowMo
from ._wrappers import Scaled as Scaled
from ._wrappers import Screened as Screened
