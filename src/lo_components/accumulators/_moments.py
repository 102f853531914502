from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractAccumulator
from ._decays import Decays
from ._view import TensorView


class FirstMoment(NamedTuple):
    """Exponential moving averages of the gradient, one per decay rate.

    **Arguments:**

    - `m`: the averages, `[c, *shape]`.
    """

    m: Float[Array, "c *shape"]


class SecondMoment(NamedTuple):
    """Exponential moving averages of the squared gradient, one per decay rate.

    **Arguments:**

    - `v`: the averages, `[c, *shape]`.
    """

    v: Float[Array, "c *shape"]


class Momentum(AbstractAccumulator[FirstMoment]):
    r"""$m_i \leftarrow b_i m_i + (1 - b_i)\, g$ for every decay rate $b_i$, starting at zero, without bias correction.

    Linear in the gradient: scaling every gradient by $s$ scales $m$ by $s$.

    ??? cite "Source"
        SM3-style multi-timescale momenta of Metz et al., *Tasks, stability, architecture, and compute*
        (arXiv 2009.11243); as used by small_fc_lopt.
    """

    produces: ClassVar = FirstMoment
    pointwise_on_vectors: ClassVar[bool] = True
    decays: Decays

    def __init__(self, decays: Sequence[float] = (0.9, 0.99, 0.999), *, learnable: bool = False):
        """**Arguments:**

        - `decays`: initial decay rates in `[0, 1)`, one channel each.
        - `learnable`: whether the decay rates are meta-learned.
        """
        self.decays = Decays(decays, learnable=learnable)

    def init(self, param: Float[Array, "*shape"]) -> FirstMoment:
        return FirstMoment(jnp.zeros((len(self.decays), *param.shape), jnp.float32))

    def update(self, view: TensorView, state: FirstMoment) -> FirstMoment:
        b = self.decays(view.grad.ndim)
        return FirstMoment(b * state.m + (1.0 - b) * view.grad[None])

    def read(self, state: FirstMoment) -> FirstMoment:
        return state


class SquaredMomentum(AbstractAccumulator[SecondMoment]):
    r"""$v_i \leftarrow b_i v_i + (1 - b_i)\, g^2$ for every decay rate $b_i$, from zero, without bias correction.

    Rates are clipped to $[0, 1]$. Quadratic in the gradient: scaling every gradient by $s$ scales $v$ by $s^2$.

    ??? cite "Source"
        As used by small_fc_lopt (google/learned_optimization, `AdafacMLPLOpt`).
    """

    produces: ClassVar = SecondMoment
    pointwise_on_vectors: ClassVar[bool] = True
    decays: Decays

    def __init__(self, decays: Sequence[float] = (0.999,), *, learnable: bool = False):
        """**Arguments:**

        - `decays`: initial decay rates in `[0, 1)`, one channel each.
        - `learnable`: whether the decay rates are meta-learned.
        """
        self.decays = Decays(decays, learnable=learnable)

    def init(self, param: Float[Array, "*shape"]) -> SecondMoment:
        return SecondMoment(jnp.zeros((len(self.decays), *param.shape), jnp.float32))

    def update(self, view: TensorView, state: SecondMoment) -> SecondMoment:
        b = jnp.clip(self.decays(view.grad.ndim), 0.0, 1.0)
        return SecondMoment(b * state.v + (1.0 - b) * jnp.square(view.grad)[None])

    def read(self, state: SecondMoment) -> SecondMoment:
        return state
