"""Initialization, forward multipliers and update scales from one declaration per array."""

from ._base import AbstractParametrization as AbstractParametrization
from ._base import WidthSpec as WidthSpec
from ._mup import MuP as MuP
from ._standard import SP as SP
