"""Networks applied to every parameter alike."""

from ._base import AbstractHead as AbstractHead
from ._linear import LinearHead as LinearHead
from ._mlp import MLPHead as MLPHead
