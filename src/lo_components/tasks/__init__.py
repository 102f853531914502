"""Models to train, with their data and losses."""

from ._augmented import AbstractAugmentation as AbstractAugmentation
from ._augmented import NoisyGradient as NoisyGradient
from ._augmented import ReducedBatch as ReducedBatch
from ._augmented import Reparametrized as Reparametrized
from ._autoencoding import Autoencoding as Autoencoding
from ._base import AbstractMeasuredTask as AbstractMeasuredTask
from ._base import AbstractTask as AbstractTask
from ._family import AbstractTaskFamily as AbstractTaskFamily
from ._language import LanguageModeling as LanguageModeling
from ._model import AbstractModelTask as AbstractModelTask
from ._quadratic import LinearRegression as LinearRegression
from ._quadratic import Quadratic as Quadratic
from ._quadratic import RandomRegressions as RandomRegressions
from ._streamed import Streamed as Streamed
from ._streamed import streamed_tasks as streamed_tasks
from ._streamed import with_window as with_window
from ._supervised import ImageClassification as ImageClassification
from ._wrapper import AbstractTaskWrapper as AbstractTaskWrapper
from ._zoo import cnn_classification as cnn_classification
from ._zoo import image_autoencoding as image_autoencoding
from ._zoo import language_modeling as language_modeling
from ._zoo import mlp_classification as mlp_classification
from ._zoo import resnet_classification as resnet_classification
from ._zoo import vit_classification as vit_classification
