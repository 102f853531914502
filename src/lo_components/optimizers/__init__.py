"""Optimizers over trees of parameters, and conversions from and to optax."""

from ._base import AbstractOptimizer as AbstractOptimizer
from ._base import StepContext as StepContext
from ._clipped_adaptively import ClippedAdaptively as ClippedAdaptively
from ._clipped_adaptively import ClippedAdaptivelyState as ClippedAdaptivelyState
from ._controlled import ControlledOptimizer as ControlledOptimizer
from ._controlled import ControlledState as ControlledState
from ._guarded import Guarded as Guarded
from ._guarded import GuardedState as GuardedState
from ._learned import LearnedOptimizer as LearnedOptimizer
from ._nn_adam import NNAdam as NNAdam
from ._nn_adam import NNAdamState as NNAdamState
from ._optax import OptaxOptimizer as OptaxOptimizer
from ._optax import as_optax as as_optax
from ._optax import as_optimizer as as_optimizer
from ._partitioned import Matrices as Matrices
from ._partitioned import Named as Named
from ._partitioned import Partitioned as Partitioned
from ._partitioned import PartitionedState as PartitionedState
from ._rnn_mlp import RNNMLP as RNNMLP
from ._rnn_mlp import RNNMLPState as RNNMLPState
from ._scheduled import Scheduled as Scheduled
from ._scheduled import ScheduledState as ScheduledState
from ._wrappers import Clipped as Clipped
from ._wrappers import ClippedByValue as ClippedByValue
from ._wrappers import Decayed as Decayed
from ._wrappers import Scaled as Scaled
