import abc

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..features import Channels


class AbstractHead(eqx.Module):
    """A function from the feature channels of one parameter to its outputs, shared by all parameters.

    Pointwise over the tensor, so a caller may evaluate it block by block. `in_size` is the number of channels it takes,
    `out_size` the number it returns.
    """

    in_size: AbstractVar[int]
    out_size: AbstractVar[int]

    @property
    def blockwise(self) -> bool:
        """Whether large tensors are better evaluated in blocks of rows, because the head's temporaries are large."""
        return False

    @abc.abstractmethod
    def __call__(self, features: tuple[Channels, ...]) -> Float[Array, "out *#shape"]:
        """The outputs, `[out_size, *#shape]`."""


def check_channels(features: tuple[Channels, ...], in_size: int) -> None:
    """Raise unless `features` hold `in_size` channels."""
    found = sum(c.values.shape[0] for c in features)
    if found != in_size:
        raise ValueError(
            f"The head takes {in_size} channels, but the features yield {found}: does each feature's `size` match its "
            "accumulator's number of decays?"
        )


def full_shape(channels: tuple[Channels, ...]) -> tuple[int, ...]:
    """The shape that all `channels` broadcast to."""
    return jnp.broadcast_shapes(*(c.values.shape[1:] for c in channels))
