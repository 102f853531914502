"""Normalization layers, for one example."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..parametrization import Axis, WidthSpec
from ._base import AbstractLayer
from ._layers import as_axis, divided


class AbstractNorm(AbstractLayer):
    """A layer that normalizes activations `[*axes, channels]` and applies a learned scale and offset per channel."""

    scale: eqx.AbstractVar[Float[Array, " channels"]]
    offset: eqx.AbstractVar[Float[Array, " channels"]]
    width: eqx.AbstractVar[WidthSpec]

    def declared(self) -> PyTree:
        """The layer with a [`lo_components.parametrization.WidthSpec`][] in place of each array."""
        return eqx.tree_at(lambda n: (n.scale, n.offset), self, (self.width, self.width))


class LayerNorm(AbstractNorm):
    r"""$\gamma \odot (x - \mathrm{mean}(x)) / \sqrt{\mathrm{var}(x) + 10^{-6}} + \beta$ over the last axis."""

    scale: Float[Array, " channels"]
    offset: Float[Array, " channels"]
    width: WidthSpec = eqx.field(static=True)

    def __init__(self, channels: Axis | int, *, residual: bool = False):
        """**Arguments:**

        - `channels`: the size of the last axis.
        - `residual`: whether the layer is part of a residual branch.
        """
        self.scale, self.offset, self.width = _start(channels, residual)

    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """The normalized activations `x`."""
        return _affine(_standardized(x, jnp.mean(x, -1, keepdims=True), -1), self)


class GroupNorm(AbstractNorm):
    """Normalization over the positions of an image and the channels of a group.

    ??? cite "Source"
        Wu & He, *Group Normalization* (arXiv 1803.08494).
    """

    scale: Float[Array, " channels"]
    offset: Float[Array, " channels"]
    width: WidthSpec = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(self, channels: Axis | int, *, groups: int = 8, residual: bool = False):
        """**Arguments:**

        - `channels`: the size of the last axis.
        - `groups`: the number of groups, which is the same at all widths.
        - `residual`: whether the layer is part of a residual branch.

        Raises `ValueError` if the number of channels is not a multiple of `groups`.
        """
        divided("channels", as_axis(channels).size, groups, "`groups`")
        self.scale, self.offset, self.width = _start(channels, residual)
        self.groups = groups

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        """The normalized activations `x`."""
        grouped = x.reshape(-1, self.groups, x.shape[-1] // self.groups)
        mean = jnp.mean(grouped, (0, 2), keepdims=True)
        return _affine(_standardized(grouped, mean, (0, 2)).reshape(x.shape), self)


class BatchNorm(AbstractNorm):
    r"""Normalization by the statistics of the batch, the `vmap` axis named `"batch"`. There are no running averages.

    Example $k$ enters the statistics with a weight $w_k$: the mean of a channel is $\sum_k w_k \bar x_k / \sum_k w_k$,
    where $\bar x_k$ is the mean over positions, and likewise for the variance. All weights are 1 in training. For
    evaluation, append training examples to those to predict and give them weight 1, the others 0: this normalizes by
    population statistics.

    ??? cite "Source"
        Ioffe & Szegedy, *Batch Normalization* (arXiv 1502.03167).
    """

    scale: Float[Array, " channels"]
    offset: Float[Array, " channels"]
    width: WidthSpec = eqx.field(static=True)

    def __init__(self, channels: Axis | int, *, residual: bool = False):
        """**Arguments:**

        - `channels`: the size of the last axis.
        - `residual`: whether the layer is part of a residual branch.
        """
        self.scale, self.offset, self.width = _start(channels, residual)

    def __call__(
        self, x: Float[Array, "height width channels"], *, weight: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "height width channels"]:
        """The normalized activations `x` of one example, which enters the statistics with `weight`."""
        weight = jnp.asarray(weight, jnp.float32)
        total = jax.lax.psum(weight, "batch")

        def batch_mean(y):
            return jax.lax.psum(weight * jnp.mean(y, (0, 1), keepdims=True), "batch") / total

        centered = x.astype(jnp.float32)
        centered = centered - batch_mean(centered)
        scale = jax.lax.rsqrt(batch_mean(jnp.square(centered)) + 1e-5)
        return _affine((centered * scale).astype(x.dtype), self)


def _start(channels: Axis | int, residual: bool):
    axis = as_axis(channels)
    width = WidthSpec.vector((axis.size,), axis, residual=residual)
    return jnp.ones(axis.size, jnp.float32), jnp.zeros(axis.size, jnp.float32), width


def _standardized(x: Float[Array, "*s"], mean: Float[Array, "*#s"], axes) -> Float[Array, "*s"]:
    variance = jnp.mean(jnp.square(x - mean), axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)


def _affine(x: Float[Array, "*batch c"], norm: AbstractNorm) -> Float[Array, "*batch c"]:
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * norm.scale.reshape(shape) + norm.offset.reshape(shape)
