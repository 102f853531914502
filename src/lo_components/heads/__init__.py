"""Small networks that map the features of each parameter to the inputs of the step rule."""

from ._base import AbstractHead as AbstractHead
from ._by_rank import HeadByRank as HeadByRank
from ._hypernetwork import MixedMLPHead as MixedMLPHead
from ._identity import IdentityHead as IdentityHead
from ._leading import LeadingOutputs as LeadingOutputs
from ._linear import LinearHead as LinearHead
from ._mlp import MLPHead as MLPHead
from ._residual import ResidualHead as ResidualHead
