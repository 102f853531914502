from typing import ClassVar

import equinox as eqx

from ..accumulators import HiddenUnits, TensorView
from ._base import AbstractFeature, Channels


class Recurrent(AbstractFeature):
    """The outputs of a recurrent network for each parameter, one channel for each unit.

    Requires a [`lo_components.accumulators.RecurrentNetwork`][] whose last layer has `size` units, and scales with the
    gradient as its inputs do, within $\\pm 1$.

    **Arguments:**

    - `size`: the number of units.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=20, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({HiddenUnits})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.stat(HiddenUnits).h),)
