import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..accumulators import FirstMoment, SecondMoment, TensorView

_RANKS = 5


class AbstractSummary(eqx.Module):
    """A few numbers that describe one tensor to a controller. `size` is how many."""

    size: AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, view: TensorView) -> Float[Array, " size"]:
        """The numbers for the tensor that `view` shows, with statistics as of the steps before this one.

        Means must leave out padding: use `view.means`.
        """


class MomentSummary(AbstractSummary):
    r"""How large a tensor's momenta $m_i$ and second moment $v$ are, and its rank, as VeLO sees them.

    With $s = (\max(10^{-9}, \mathrm{mean}\, p^2))^{-1/2}$ and
    $L(x) = \tfrac12 \mathrm{clip}(\ln(10^{-8} + |10 x|), \pm 5)$, the numbers are $L(\mathrm{mean}(s v))$; a one-hot
    encoding of the number of axes of size above 1, up to 4; $L(\mathrm{mean}((s m_i - \overline{s m_i})^2))$; and
    $L(\mathrm{mean}((s v - \overline{s m_i})^2))$.

    ??? cite "Source"
        VeLO (arXiv 2211.09760), with its mean of $m_i$ in place of $v$ in the last term.
    """

    num_momenta: int = eqx.field(static=True)

    def __init__(self, num_momenta: int = 3):
        """**Arguments:**

        - `num_momenta`: how many momenta there are.
        """
        self.num_momenta = num_momenta

    @property
    def size(self) -> int:
        return 1 + _RANKS + 2 * self.num_momenta

    def __call__(self, view: TensorView) -> Float[Array, " size"]:
        scale = jax.lax.rsqrt(jnp.maximum(1e-9, view.means(jnp.square(view.param)[None])))
        m, v = (view.stat(kind)[0] * view.spread(scale) for kind in (FirstMoment, SecondMoment))
        mean = view.spread(view.means(m))
        var_m, var_v = view.means(jnp.square(m - mean)), view.means(jnp.square(v - mean))
        rank = jax.nn.one_hot(_num_axes(view), _RANKS, dtype=jnp.float32)
        return jnp.concatenate([_log(view.means(v)), rank, _log(var_m), _log(var_v)])


class SignalSummary(AbstractSummary):
    r"""Whether the tensor is a vector, and how much of its gradient is signal, on several time scales.

    1 for vectors and scalars and 0 for others; and for each momentum $m_i$, with the second moment $v$,
    $\tfrac12 \ln(\mathrm{mean}(m_i^2) / \mathrm{mean}(v))$ within $[-4, 1]$, which is low if gradients are mostly noise
    or change their direction, and 0 before the first step. Independent of the scale of the gradient. Requires second
    moments with one decay rate.
    """

    size: int = eqx.field(static=True)

    def __init__(self, num_momenta: int):
        """**Arguments:**

        - `num_momenta`: how many momenta there are.
        """
        self.size = 1 + num_momenta

    def __call__(self, view: TensorView) -> Float[Array, " size"]:
        m, v = (view.means(x) for x in (jnp.square(view.stat(FirstMoment).m), view.stat(SecondMoment).v))
        ratio = 0.5 * jnp.log((m + 1e-30) / (v + 1e-30))
        vector = jnp.full(1, view.param.ndim < 2, jnp.float32)
        return jnp.concatenate([vector, jnp.where(v > 0, jnp.clip(ratio, -4.0, 1.0), 0.0)])


class NormSummary(AbstractSummary):
    r"""Norms, means and variances of a tensor's gradient, momenta, second moments and parameter, for RNN-MLP.

    With $L(x) = \mathrm{clip}(\ln(10^{-8} + |x|), \pm 5)$, and means over elements and decay rates, in this order:
    $L(\|g\|)$; $L$ and sign of mean $m$; $L$ and sign of mean $v$; $L$ and sign of mean $p$; $L(\|p\|)$; $L$ of the
    variances of $m$, $v$ and $p$; and $\ln(\|p\| + 10^{-8})$.

    ??? cite "Source"
        Metz et al. (arXiv 2009.11243).
    """

    size: int = eqx.field(default=12, init=False, static=True)

    def __call__(self, view: TensorView) -> Float[Array, " size"]:
        number = jnp.asarray(view.param.size if view.size is None else view.size, jnp.float32)
        g_norm, p_norm = (jnp.sqrt(number * view.means(jnp.square(x)[None])) for x in (view.grad, view.param))
        arrays = view.stat(FirstMoment).m, view.stat(SecondMoment).v, view.param[None]
        means = [jnp.mean(view.means(x), keepdims=True) for x in arrays]
        variances = [
            jnp.mean(view.means(jnp.square(x - view.spread(mean))), keepdims=True)
            for x, mean in zip(arrays, means, strict=True)
        ]
        sizes_and_signs = [y for mean in means for y in (_log_size(mean), jnp.sign(mean))]
        rest = [*map(_log_size, [p_norm, *variances]), jnp.log(p_norm + 1e-8)]
        return jnp.concatenate([_log_size(g_norm), *sizes_and_signs, *rest])


def _log_size(x: Float[Array, " c"]) -> Float[Array, " c"]:
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


def _num_axes(view: TensorView) -> int | Array:
    """The number of axes of size above 1."""
    if view.size is None:
        return sum(n > 1 for n in view.param.shape)
    return (jnp.asarray(view.size) > 1).astype(jnp.int32)  # a padded vector


def _log(x: Float[Array, " c"]) -> Float[Array, " c"]:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)
