import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from ..accumulators import TensorView
from ._base import AbstractFeature, Channels, unnormalized


class Concat(AbstractFeature):
    """Several features, concatenated. Their order is that of the head's input weights."""

    features: tuple[AbstractFeature, ...]

    def __init__(self, *features: AbstractFeature):
        """**Arguments:**

        - `features`: the features to concatenate.
        """
        self.features = features

    @property
    def size(self) -> int:
        return sum(f.size for f in self.features)

    @property
    def pointwise(self) -> bool:
        return all(f.pointwise for f in self.features)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset().union(*(f.requires for f in self.features))

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return tuple(channels for feature in self.features for channels in feature(view))


class RMSNormalized(AbstractFeature):
    r"""Divide every channel $x$ of a feature by its root mean square over the tensor:
    $x\,(\epsilon + \mathrm{mean}(x^2))^{-1/2}$.

    Invariant to the scale of the channel as long as its mean square is well above $\epsilon$. The normalizer is a lazy
    scale, so no normalized copy of the channel is written. For an empty tensor the mean counts as 0.
    """

    feature: AbstractFeature
    eps: float = eqx.field(static=True)

    def __init__(self, feature: AbstractFeature, eps: float = 1e-5):
        """**Arguments:**

        - `feature`: the feature to normalize.
        - `eps`: added to the mean square.
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
        groups = [unnormalized(channels) for channels in self.feature(view)]
        return tuple(Channels(x, m, self.eps) for x, m in zip(groups, view.mean_squares(groups), strict=True))


class RMSNormalizedMatrices(AbstractFeature):
    r"""Divide every channel of a feature by its root mean square over the last two axes, as Celo2 does.

    Tensors of rank 1 or 2 are normalized as by [`lo_components.features.RMSNormalized`][]; in tensors of higher rank,
    such as the kernels of convolutions, each matrix has its own root mean square.
    """

    feature: AbstractFeature
    eps: float = eqx.field(static=True)

    def __init__(self, feature: AbstractFeature, eps: float = 1e-9):
        """**Arguments:**

        - `feature`: the feature to normalize.
        - `eps`: added to the mean square.
        """
        self.feature = feature
        self.eps = eps

    @property
    def size(self) -> int:
        return self.feature.size

    @property
    def requires(self) -> frozenset[type]:
        return self.feature.requires

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        if view.param.ndim <= 2:
            return RMSNormalized(self.feature, self.eps)(view)
        groups = [unnormalized(channels) for channels in self.feature(view)]
        means = [jnp.mean(jnp.square(x), axis=(-2, -1), keepdims=True) for x in groups]
        return tuple(Channels(x * jax.lax.rsqrt(m + self.eps)) for x, m in zip(groups, means, strict=True))


class MatricesOnly(AbstractFeature):
    """A feature whose channels are zero for vectors and scalars."""

    feature: AbstractFeature

    def __init__(self, feature: AbstractFeature):
        """**Arguments:**

        - `feature`: the feature.
        """
        self.feature = feature

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
        if view.param.ndim < 2:
            return (Channels(view.spread(jnp.zeros(self.size, jnp.float32))),)
        return self.feature(view)


class Channel(AbstractFeature):
    """One channel of another feature."""

    feature: AbstractFeature
    index: int = eqx.field(static=True)
    size: int = eqx.field(default=1, init=False, static=True)

    def __init__(self, feature: AbstractFeature, index: int):
        """**Arguments:**

        - `feature`: the other feature, whose channels are not normalized.
        - `index`: which one; -1 is the last.
        """
        self.feature = feature
        self.index = index

    @property
    def pointwise(self) -> bool:
        return self.feature.pointwise

    @property
    def requires(self) -> frozenset[type]:
        return self.feature.requires

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        channels = [x for group in self.feature(view) for x in unnormalized(group)]
        return (Channels(channels[self.index][None]),)


class ChannelMean(AbstractFeature):
    r"""The mean $\frac1c \sum_i x_i$ of the channels of another feature, one channel.

    Of [`lo_components.features.Momenta`][] it is the direction of AggMo.

    ??? cite "Source"
        Lucas et al., *Aggregated Momentum* (arXiv 1804.00325).
    """

    feature: AbstractFeature
    size: int = eqx.field(default=1, init=False, static=True)

    def __init__(self, feature: AbstractFeature):
        """**Arguments:**

        - `feature`: the other feature, whose channels are not normalized.
        """
        self.feature = feature

    @property
    def pointwise(self) -> bool:
        return self.feature.pointwise

    @property
    def requires(self) -> frozenset[type]:
        return self.feature.requires

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        totals = [jnp.sum(unnormalized(group), axis=0, keepdims=True) for group in self.feature(view)]
        return (Channels(functools.reduce(jnp.add, totals) / self.feature.size),)


class TensorMean(AbstractFeature):
    """The mean over the tensor of each channel of another feature."""

    feature: AbstractFeature

    def __init__(self, feature: AbstractFeature):
        """**Arguments:**

        - `feature`: the other feature, whose channels are not normalized.
        """
        self.feature = feature

    @property
    def size(self) -> int:
        return self.feature.size

    @property
    def requires(self) -> frozenset[type]:
        return self.feature.requires

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return tuple(Channels(view.spread(view.means(unnormalized(group)))) for group in self.feature(view))
