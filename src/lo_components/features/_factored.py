from typing import ClassVar

import equinox as eqx
import jax

from ..accumulators import FactoredSecondMoment, FirstMoment, TensorView
from ._base import AbstractFeature, Channels


class FactoredGradient(AbstractFeature):
    r"""Adafactor's preconditioned gradient $g\, r_i\, c_i$, one channel per decay rate.

    Invariant to the scale of the gradient unless a floor is active. Requires
    [`lo_components.accumulators.FactoredSquares`][] with `size` decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FactoredSecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        stat = view.stat(FactoredSecondMoment)
        return (Channels(view.grad[None] * stat.row_factor * stat.col_factor),)


class FactoredMomenta(AbstractFeature):
    r"""Preconditioned momenta $m_i\, r_i\, c_i$, one channel per decay rate.

    Below rank 2 they are $m_i\,(V_i + \epsilon)^{-1/2}$.

    Invariant to the scale of the gradient unless a floor is active. Requires
    [`lo_components.accumulators.Momentum`][] and [`lo_components.accumulators.FactoredSquares`][], both with `size`
    decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    - `eps`: $\epsilon$, used below rank 2 only.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)
    eps: float = eqx.field(default=1e-6, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FirstMoment, FactoredSecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        m, stat = view.stat(FirstMoment).m, view.stat(FactoredSecondMoment)
        if stat.diagonal:
            return (Channels(m * jax.lax.rsqrt(stat.row + self.eps)),)
        return (Channels(m * stat.row_factor * stat.col_factor),)


class RowSquares(AbstractFeature):
    """The row statistics $R_i$ of the squared gradient (below rank 2 the full second moment), not tiled.

    Quadratic in the gradient. Requires [`lo_components.accumulators.FactoredSquares`][] with `size` decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FactoredSecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.stat(FactoredSecondMoment).row),)


class ColumnSquares(AbstractFeature):
    """The column statistics $C_i$ of the squared gradient (below rank 2 the full second moment), not tiled.

    Quadratic in the gradient. Requires [`lo_components.accumulators.FactoredSquares`][] with `size` decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FactoredSecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.stat(FactoredSecondMoment).col),)
