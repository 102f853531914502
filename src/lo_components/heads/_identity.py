import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead, check_channels, full_shape


class IdentityHead(AbstractHead):
    """Returns the channels as they are: nothing is learned.

    With it, a feature such as a momentum is the input of a step rule, for rules without a network and for controls of
    experiments.
    """

    in_size: int = eqx.field(static=True)

    def __init__(self, in_size: int):
        """**Arguments:**

        - `in_size`: the number of channels.
        """
        self.in_size = in_size

    @property
    def out_size(self) -> int:
        return self.in_size

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        check_channels(features, self.in_size)
        shape = full_shape(features)
        return jnp.concatenate([jnp.broadcast_to(c.scaled(), (c.values.shape[0], *shape)) for c in features])
