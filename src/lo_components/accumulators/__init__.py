"""Recurrences over the gradients of one tensor, such as momentum."""

from ._base import AbstractAccumulator as AbstractAccumulator
from ._decays import Decays as Decays
from ._factored import FactoredSecondMoment as FactoredSecondMoment
from ._factored import FactoredSquares as FactoredSquares
from ._factored import FactoredState as FactoredState
from ._moments import FirstMoment as FirstMoment
from ._moments import Momentum as Momentum
from ._moments import SecondMoment as SecondMoment
from ._moments import SquaredMomentum as SquaredMomentum
from ._recurrent import HiddenUnits as HiddenUnits
from ._recurrent import RecurrentNetwork as RecurrentNetwork
from ._recurrent import RecurrentState as RecurrentState
from ._view import TensorView as TensorView
