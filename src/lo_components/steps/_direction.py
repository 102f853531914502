from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..parametrization import SCALE_FREE, UpdateRule
from ._base import AbstractStepRule


class Direction(AbstractStepRule):
    r"""$\Delta p = -\lambda\, o_0$: the head's single output times a constant.

    **Arguments:**

    - `step_mult`: $\lambda$. An array is meta-learned.
    """

    step_mult: float | Float[Array, ""] = 1e-3
    in_size: int = eqx.field(default=1, init=False, static=True)
    pointwise: ClassVar[bool] = True
    update_rule: ClassVar[UpdateRule] = SCALE_FREE

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        return -self.step_mult * out[0]


class DirectionMagnitude(AbstractStepRule):
    r"""$\Delta p = -\lambda_2\, o_0 \exp(\lambda_1 o_1)$: a direction and a log-magnitude.

    **Arguments:**

    - `step_mult`: $\lambda_2$. The muLO paper meta-trains with 0.01 under muP and 0.001 under SP.
    - `exp_mult`: $\lambda_1$. Arrays are meta-learned.

    ??? cite "Source"
        Metz et al. (arXiv 2009.11243); muLO (arXiv 2406.00153), section 3.
    """

    step_mult: float | Float[Array, ""] = 1e-3
    exp_mult: float | Float[Array, ""] = 1e-3
    in_size: int = eqx.field(default=2, init=False, static=True)
    pointwise: ClassVar[bool] = True
    update_rule: ClassVar[UpdateRule] = SCALE_FREE

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        return -self.step_mult * out[0] * jnp.exp(self.exp_mult * out[1])


class Magnitude(AbstractStepRule):
    r"""$\Delta p = -\lambda_2 \exp(\lambda_1 o_0)$: a log-magnitude, for a direction that is given.

    [`lo_components.steps.Times`][] multiplies it by the direction, such as a momentum, or the parameter: that is weight
    decay of learned strength.

    **Arguments:**

    - `step_mult`: $\lambda_2$.
    - `exp_mult`: $\lambda_1$. Arrays are meta-learned.

    ??? cite "Source"
        The controllers of STAR (arXiv 2209.11208).
    """

    step_mult: float | Float[Array, ""] = 1e-3
    exp_mult: float | Float[Array, ""] = 1e-3
    in_size: int = eqx.field(default=1, init=False, static=True)
    pointwise: ClassVar[bool] = True
    update_rule: ClassVar[UpdateRule] = SCALE_FREE

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        return -self.step_mult * jnp.exp(self.exp_mult * out[0])


class Fixed(AbstractStepRule):
    r"""$\Delta p = -\lambda$, without any output of the head: [`lo_components.steps.Magnitude`][] without control.

    **Arguments:**

    - `step_mult`: $\lambda$. An array is meta-learned.
    """

    step_mult: float | Float[Array, ""] = 1e-3
    in_size: int = eqx.field(default=0, init=False, static=True)
    pointwise: ClassVar[bool] = True
    update_rule: ClassVar[UpdateRule] = SCALE_FREE

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        return jnp.broadcast_to(-jnp.asarray(self.step_mult, jnp.float32), view.param.shape)
