"""Optimizees with their data and losses."""

from ._base import AbstractTask as AbstractTask
from ._quadratic import Quadratic as Quadratic
from ._supervised import ImageClassification as ImageClassification
from ._zoo import mlp_classification as mlp_classification
