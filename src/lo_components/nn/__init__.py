"""Optimizees: models that take a parametrization."""

from ._linear import Linear as Linear
from ._linear import declared_widths as declared_widths
from ._mlp import MLP as MLP
