import abc
from typing import ClassVar

import equinox as eqx
import jax
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..accumulators import TensorView


class Channels(eqx.Module):
    r"""A group of feature channels of one tensor, not yet broadcast to its shape.

    **Arguments:**

    - `values`: `[c, *#shape]`. Axes along which a channel is constant have size 1: a row statistic is `[c, rows, 1]`,
        a time embedding `[c, 1, 1]`. Heads broadcast them; nothing is tiled.
    - `mean_square`: `[c]`, the mean of the squares of `values` over the tensor, if channels are to be divided by its
        root; otherwise `None`. If the view shows a block or a padded vector, the pipeline computes the mean from
        `values` instead. Nothing else may depend on a reduction over the tensor. A head folds the division into its
        first weights, so that a tensor can be evaluated block by block, with the means from a first pass.
    - `eps`: added to the mean square.
    """

    values: Float[Array, "c *#shape"]
    mean_square: Float[Array, " c"] | None = None
    eps: float = eqx.field(default=0.0, static=True)

    @property
    def scale(self) -> Float[Array, " c"] | None:
        r"""The lazy factor $(\text{mean square} + \epsilon)^{-1/2}$ of each channel; `None` means 1."""
        return None if self.mean_square is None else jax.lax.rsqrt(self.mean_square + self.eps)

    def scaled(self) -> Float[Array, "c *#shape"]:
        """The channels with their scale applied."""
        if self.scale is None:
            return self.values
        return self.values * self.scale.reshape((-1,) + (1,) * (self.values.ndim - 1))


class AbstractFeature(eqx.Module):
    """Maps the view of one tensor to channels.

    `size` is the total number of channels; `requires` is the set of statistics that the feature reads from the view.
    `pointwise` says whether each element of `values` depends only on the same element of the view, so that a large
    tensor can be evaluated in blocks of rows. It is false by default, and the tensor is then evaluated as a whole.
    """

    size: AbstractVar[int]
    pointwise: ClassVar[bool] = False

    @property
    def requires(self) -> frozenset[type]:
        """The types of the statistics that `__call__` reads."""
        return frozenset()

    @abc.abstractmethod
    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        """The channels of `view`, in one or more groups with `size` channels in total."""


def unnormalized(channels: Channels) -> Float[Array, "c *#shape"]:
    """The values of channels without a lazy scale. Functions of scaled channels could not be evaluated in blocks.

    Raises `ValueError` if the channels have one.
    """
    if channels.mean_square is not None:
        raise ValueError("`RMSNormalized` must come last, since no other feature accepts normalized channels.")
    return channels.values
