"""Optimizers over trees of parameters, and conversions from and to optax."""

from ._base import AbstractOptimizer as AbstractOptimizer
from ._base import StepContext as StepContext
from ._learned import LearnedOptimizer as LearnedOptimizer
from ._optax import OptaxOptimizer as OptaxOptimizer
from ._optax import as_optax as as_optax
from ._optax import as_optimizer as as_optimizer
from ._wrappers import Clipped as Clipped
from ._wrappers import Decayed as Decayed
from ._wrappers import Scaled as Scaled
