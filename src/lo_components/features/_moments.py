from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..accumulators import FirstMoment, SecondMoment, TensorView
from ._base import AbstractFeature, Channels, unnormalized


class Momenta(AbstractFeature):
    """The first moments $m_i$, one channel per decay rate.

    Linear in the gradient. Requires [`lo_components.accumulators.Momentum`][] with `size` decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FirstMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.stat(FirstMoment).m),)


class Squares(AbstractFeature):
    """The second moments $v_i$, one channel per decay rate.

    Quadratic in the gradient. Requires [`lo_components.accumulators.SquaredMomentum`][] with `size` decay rates.

    **Arguments:**

    - `size`: the number of decay rates.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=1, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({SecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.stat(SecondMoment).v),)


class NormalizedMomenta(AbstractFeature):
    r"""Momenta $m_i / (\delta + \sqrt{v + \epsilon})$ over a single second moment $v$, one channel per decay rate.

    Invariant to the scale of the gradient as long as $v \gg \epsilon$. Requires
    [`lo_components.accumulators.Momentum`][] with `size` decay rates and
    [`lo_components.accumulators.SquaredMomentum`][] with one, or with as many, each for one of the momenta.

    **Arguments:**

    - `size`: the number of decay rates of the momenta.
    - `eps`: $\epsilon$, under the root.
    - `eps_outside`: $\delta$.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=3, static=True)
    eps: float = eqx.field(default=1e-6, static=True)
    eps_outside: float = eqx.field(default=0.0, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({FirstMoment, SecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        m, v = view.stat(FirstMoment).m, view.stat(SecondMoment).v + self.eps
        return (Channels(m / (self.eps_outside + jnp.sqrt(v)) if self.eps_outside else m * jax.lax.rsqrt(v)),)


class NormalizedGradient(AbstractFeature):
    r"""The gradient $g\,(v + \epsilon)^{-1/2}$ over a single second moment $v$, one channel.

    Invariant to the scale of the gradient as long as $v \gg \epsilon$. Requires
    [`lo_components.accumulators.SquaredMomentum`][] with one decay rate.

    **Arguments:**

    - `eps`: $\epsilon$.
    """

    pointwise: ClassVar[bool] = True
    eps: float = eqx.field(default=1e-6, static=True)
    size: int = eqx.field(default=1, init=False, static=True)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset({SecondMoment})

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.grad[None] * jax.lax.rsqrt(view.stat(SecondMoment).v + self.eps)),)


class InverseRoot(AbstractFeature):
    r"""The inverse root $(x + \epsilon)^{-1/2}$ of every channel $x \ge 0$ of a feature.

    Inversely proportional to the gradient if $x$ is a second moment well above $\epsilon$.
    """

    feature: AbstractFeature
    eps: float = eqx.field(static=True)

    def __init__(self, feature: AbstractFeature, eps: float = 1e-8):
        """**Arguments:**

        - `feature`: the feature to transform.
        - `eps`: added to each channel.
        """
        self.feature = feature
        self.eps = eps

    @property
    def size(self) -> int:
        return self.feature.size

    @property
    def pointwise(self) -> bool:
        return self.feature.pointwise

    @property
    def requires(self) -> frozenset[type]:
        return self.feature.requires

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return tuple(Channels(jax.lax.rsqrt(unnormalized(c) + self.eps)) for c in self.feature(view))
