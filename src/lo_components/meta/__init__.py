"""Meta-training and meta-testing."""

from ._checkpoints import Checkpoints as Checkpoints
from ._coordinate_check import CoordinateCheck as CoordinateCheck
from ._coordinate_check import Exponent as Exponent
from ._coordinate_check import coordinate_check as coordinate_check
from ._evaluate import Evaluation as Evaluation
from ._evaluate import evaluate as evaluate
from ._evaluate import step_sizes as step_sizes
from ._interval import Interval as Interval
from ._interval import median_interval as median_interval
from ._log import read_log as read_log
from ._loop import meta_train as meta_train
from ._run_folder import RunFolder as RunFolder
from ._sweep import Best as Best
from ._sweep import Sweep as Sweep
from ._sweep import sweep as sweep
from ._trainer import MetaMetrics as MetaMetrics
from ._trainer import MetaState as MetaState
from ._trainer import init_meta_state as init_meta_state
from ._trainer import meta_optimizer as meta_optimizer
from ._trainer import meta_step as meta_step
