import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from ..accumulators import TensorView
from ._base import AbstractFeature, Channels


class Gradient(AbstractFeature):
    """The gradient $g$ itself, one channel. For aggregators it is the mean of the workers' deltas.

    Linear in the gradient.
    """

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.grad[None]),)


class ClippedGradient(AbstractFeature):
    r"""The gradient, each element clipped to $\pm c$, one channel. Linear in small gradients.

    **Arguments:**

    - `limit`: $c$.
    """

    pointwise: ClassVar[bool] = True
    limit: float = eqx.field(default=0.1, static=True)
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(jnp.clip(view.grad, -self.limit, self.limit)[None]),)


class Parameter(AbstractFeature):
    """The parameter $p$ before the step, one channel. Independent of the gradient."""

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.param[None]),)


class LogParameter(AbstractFeature):
    r"""The logarithm $\ln(|p| + \epsilon)$ of the parameter before the step, one channel. Independent of the gradient.

    **Arguments:**

    - `eps`: $\epsilon$.
    """

    pointwise: ClassVar[bool] = True
    eps: float = eqx.field(default=1e-8, static=True)
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(jnp.log(jnp.abs(view.param) + self.eps)[None]),)


class Controls(AbstractFeature):
    """What a controller says about the tensor, one channel for each control."""

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(static=True)

    def __init__(self, size: int):
        """**Arguments:**

        - `size`: the number of controls.
        """
        self.size = size

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.spread(view.required("controls"))),)


class LogAndSign(AbstractFeature):
    r"""The size and the sign of the gradient, two channels: $\max(\ln(|g| + \epsilon) / k, -1)$, and $g\, e^k$ within
    $\pm 1$.

    Above $e^{-k}$ the first shows the size on a logarithmic scale, and the second is the sign; below, the first is -1,
    and the second is linear in the gradient. $\epsilon = 2^{-23}$.

    **Arguments:**

    - `k`: $k$.

    ??? cite "Source"
        Andrychowicz et al. (arXiv 1606.04474), appendix A, with the epsilon of their code.
    """

    pointwise: ClassVar[bool] = True
    k: float | int = eqx.field(default=5.0, static=True)
    size: int = eqx.field(default=2, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        log = jnp.maximum(jnp.log(jnp.abs(view.grad) + 2.0**-23) / self.k, -1.0)
        sign = jnp.clip(view.grad * math.exp(self.k), -1.0, 1.0)
        return (Channels(jnp.stack([log, sign])),)
