"""What a round makes of the workers' deltas."""

from ._base import AbstractAggregator as AbstractAggregator
from ._base import AggregatorState as AggregatorState
from ._learned import LearnedAggregator as LearnedAggregator
from ._mean import Mean as Mean
from ._outer import OuterOptimizer as OuterOptimizer
from ._slowmo import SlowMo as SlowMo
