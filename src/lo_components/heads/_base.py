import abc

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..features import Channels


class AbstractHead(eqx.Module):
    """A function from the feature channels of a parameter to output channels, the same for all parameters.

    Heads act elementwise over the tensor, so that a caller may evaluate them in blocks. `in_size` is the number of
    input channels, `out_size` the number of output channels.
    """

    in_size: AbstractVar[int]
    out_size: AbstractVar[int]

    @property
    def blockwise(self) -> bool:
        """Whether evaluating large tensors in blocks of rows is faster, since intermediate results are large."""
        return False

    @abc.abstractmethod
    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        """The outputs `[out_size, *#shape]` for the channels `features` of the tensor or block that `view` shows."""


def check_channels(features: tuple[Channels, ...], in_size: int) -> None:
    """Raise a `ValueError` unless `features` hold `in_size` channels."""
    found = sum(c.values.shape[0] for c in features)
    if found != in_size:
        raise ValueError(
            f"The head takes {in_size} channels, but the features yield {found}; check that each feature's `size` is "
            "the number of decay rates of its accumulator."
        )


def full_shape(channels: tuple[Channels, ...]) -> tuple[int, ...]:
    """The shape that all `channels` broadcast to."""
    return jnp.broadcast_shapes(*(c.values.shape[1:] for c in channels))
