"""Learned optimizers built from small typed parts."""

from . import accumulators as accumulators
from . import aggregators as aggregators
from . import controllers as controllers
from . import data as data
from . import estimators as estimators
from . import features as features
from . import heads as heads
from . import interop as interop
from . import meta as meta
from . import nn as nn
from . import optimizers as optimizers
from . import parametrization as parametrization
from . import pipeline as pipeline
from . import plots as plots
from . import recipes as recipes
from . import schedules as schedules
from . import sharding as sharding
from . import steps as steps
from . import tasks as tasks
from . import unroll as unroll
from . import weights as weights
from ._learner import Constant as Constant
from ._learner import Learner as Learner
from ._learner import partition as partition
from ._learner import theta as theta
from ._pretrained import Card as Card
from ._pretrained import Pretrained as Pretrained
from ._pretrained import pretrained as pretrained
from .accumulators import AbstractAccumulator as AbstractAccumulator
from .aggregators import AbstractAggregator as AbstractAggregator
from .aggregators import LearnedAggregator as LearnedAggregator
from .estimators import AbstractEstimator as AbstractEstimator
from .features import AbstractFeature as AbstractFeature
from .heads import AbstractHead as AbstractHead
from .optimizers import AbstractOptimizer as AbstractOptimizer
from .optimizers import LearnedOptimizer as LearnedOptimizer
from .optimizers import OptaxOptimizer as OptaxOptimizer
from .optimizers import as_optax as as_optax
from .parametrization import AbstractParametrization as AbstractParametrization
from .pipeline import Pipeline as Pipeline
from .steps import AbstractStepRule as AbstractStepRule
from .tasks import AbstractTask as AbstractTask

__version__ = "0.2.0"
