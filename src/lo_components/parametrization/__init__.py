"""Parametrizations: initialization, forward multipliers and update scales of each array of a model."""

from ._absorbed import Absorbed as Absorbed
from ._absorbed import reinitialize as reinitialize
from ._base import AbstractParametrization as AbstractParametrization
from ._base import check_widths as check_widths
from ._depth import DepthMuP as DepthMuP
from ._infer import infer_widths as infer_widths
from ._mup import MuP as MuP
from ._rule import ORTHOGONALIZED as ORTHOGONALIZED
from ._rule import ORTHOGONALIZED_RMS as ORTHOGONALIZED_RMS
from ._rule import PROPORTIONAL as PROPORTIONAL
from ._rule import RELATIVE as RELATIVE
from ._rule import SCALE_FREE as SCALE_FREE
from ._rule import UNSCALED as UNSCALED
from ._rule import RuleByRank as RuleByRank
from ._rule import UpdateRule as UpdateRule
from ._rule import every_leaf as every_leaf
from ._standard import SP as SP
from ._width import Axis as Axis
from ._width import WidthSpec as WidthSpec
