from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._base import AbstractAccumulator
from ._decays import Decays
from ._view import TensorView


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes `(d1, d0)` of the second largest and the largest size; the later of two equal axes counts as larger.

    `None` below rank 2.
    """
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def safe_rsqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$1/\sqrt{\max(x, 10^{-9})}$."""
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


class FactoredState(NamedTuple):
    """Moving averages of the squared gradient, averaged over one axis, which is kept with size 1.

    **Arguments:**

    - `row`: averaged over the largest axis; below rank 2 the full second moment.
    - `col`: averaged over the second largest axis; below rank 2 it is not used, `[1, 1]`.
    """

    row: Float[Array, "c *row_shape"]
    col: Float[Array, "c *col_shape"]


class FactoredSecondMoment(eqx.Module):
    r"""Row and column statistics $R$, $C$ of the squared gradient, and Adafactor's preconditioning factors.

    Adafactor's preconditioned gradient is $g \cdot$ `row_factor` $\cdot$ `col_factor`.

    **Arguments:**

    - `row`: $R$; below rank 2 the full second moment $V$.
    - `col`: $C$; below rank 2 $V$ again.
    - `row_factor`: $r$; below rank 2 $(V + 10^{-9})^{-1/2}$.
    - `col_factor`: $c$; below rank 2 it is 1.
    - `diagonal`: whether the tensor has a rank below 2.
    """

    row: Float[Array, "c *row_shape"]
    col: Float[Array, "c *col_shape"]
    row_factor: Float[Array, "c *row_shape"]
    col_factor: Float[Array, "c *#col_shape"]
    diagonal: bool = eqx.field(static=True)


class FactoredSquares(AbstractAccumulator[FactoredState]):
    r"""Adafactor's factored second moments, one pair of row and column statistics per decay rate.

    With $q = g^2 + 10^{-30}$, $d_0$ the largest and $d_1$ the second largest axis, and $b$ clipped to $[0, 1]$:

    $$R \leftarrow b R + (1 - b)\,\mathrm{mean}_{d_0}\, q, \qquad C \leftarrow b C + (1 - b)\,\mathrm{mean}_{d_1}\, q,$$

    and the factors are $r = \max(R / (\mathrm{mean}_{d_1} R + 10^{-9}), 10^{-9})^{-1/2}$ and
    $c = \max(C, 10^{-9})^{-1/2}$. All other axes are kept, and there is no minimum size for factoring. Below
    rank 2 the full second moment is stored. Memory: $c\,(n/d_0 + n/d_1)$ floats for a tensor of $n$ elements instead
    of $c\,n$.

    ??? cite "Source"
        Shazeer & Stern, *Adafactor* (arXiv 1804.04235), algorithm 4; constants of small_fc_lopt
        (google/learned_optimization).
    """

    produces: ClassVar = FactoredSecondMoment
    pointwise_on_vectors: ClassVar[bool] = True
    decays: Decays

    def __init__(self, decays: Sequence[float] = (0.9, 0.99, 0.999), *, learnable: bool = False):
        """**Arguments:**

        - `decays`: initial decay rates in `[0, 1)`, each with one row and one column channel.
        - `learnable`: whether the decay rates are meta-learned.
        """
        self.decays = Decays(decays, learnable=learnable)

    def init(self, param: Float[Array, "*shape"]) -> FactoredState:
        axes = factored_axes(param.shape)
        count = len(self.decays)
        if axes is None:
            return FactoredState(jnp.zeros((count, *param.shape), jnp.float32), jnp.zeros((1, 1), jnp.float32))
        d1, d0 = axes
        row_shape = [1 if axis == d0 else n for axis, n in enumerate(param.shape)]
        col_shape = [1 if axis == d1 else n for axis, n in enumerate(param.shape)]
        return FactoredState(jnp.zeros((count, *row_shape), jnp.float32), jnp.zeros((count, *col_shape), jnp.float32))

    def update(self, view: TensorView, state: FactoredState) -> FactoredState:
        grad = view.grad
        b = jnp.clip(self.decays(grad.ndim), 0.0, 1.0)
        q = jnp.square(grad) + 1e-30
        axes = factored_axes(grad.shape)
        if axes is None:
            return FactoredState(b * state.row + (1.0 - b) * q[None], state.col)
        d1, d0 = axes
        row = b * state.row + (1.0 - b) * jnp.mean(q, axis=d0, keepdims=True)[None]
        col = b * state.col + (1.0 - b) * jnp.mean(q, axis=d1, keepdims=True)[None]
        return FactoredState(row, col)

    def read(self, state: FactoredState) -> FactoredSecondMoment:
        if state.row.ndim == 2:
            factor = safe_rsqrt(state.row + 1e-9)
            ones = jnp.ones((len(self.decays),) + (1,) * (state.row.ndim - 1), jnp.float32)
            return FactoredSecondMoment(state.row, state.row, factor, ones, diagonal=True)
        shape = tuple(max(r, c) for r, c in zip(state.row.shape[1:], state.col.shape[1:], strict=True))
        d1, _ = factored_axes(shape)  # type: ignore[reportGeneralTypeIssues]
        row_factor = safe_rsqrt(state.row / (jnp.mean(state.row, axis=1 + d1, keepdims=True) + 1e-9))
        return FactoredSecondMoment(state.row, state.col, row_factor, safe_rsqrt(state.col), diagonal=False)
