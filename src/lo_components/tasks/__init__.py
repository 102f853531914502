"""Optimizees with their data and losses."""

from ._base import AbstractTask as AbstractTask
from ._coordinate_check import CoordinateCheck as CoordinateCheck
from ._coordinate_check import Exponent as Exponent
from ._coordinate_check import coordinate_check as coordinate_check
from ._language import LanguageModeling as LanguageModeling
from ._model import AbstractModelTask as AbstractModelTask
from ._quadratic import LinearRegression as LinearRegression
from ._quadratic import Quadratic as Quadratic
from ._supervised import ImageClassification as ImageClassification
from ._zoo import cnn_classification as cnn_classification
from ._zoo import language_modeling as language_modeling
from ._zoo import mlp_classification as mlp_classification
from ._zoo import resnet_classification as resnet_classification
from ._zoo import vit_classification as vit_classification
