import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead, check_channels


class LinearHead(AbstractHead):
    r"""An affine map $W^\top x + b$ of the channels of each parameter, with one interpretable weight per feature.

    Weights are sampled from a normal distribution of standard deviation $1/\sqrt{\text{fan-in}}$, truncated at two
    standard deviations. Biases start at zero.
    """

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`: the number of input channels.
        - `out_size`: the number of output channels.
        - `key`: for the initial weights.
        """
        self.weight = jax.random.truncated_normal(key, -2.0, 2.0, (in_size, out_size), jnp.float32) * in_size**-0.5
        self.bias = jnp.zeros(out_size, jnp.float32)

    @property
    def in_size(self) -> int:
        return self.weight.shape[0]

    @property
    def out_size(self) -> int:
        return self.weight.shape[1]

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        check_channels(features, self.in_size)
        rows = iter(self.weight)
        ndim = features[0].values.ndim - 1
        trailing = (-1,) + (1,) * ndim
        return self.bias.reshape(trailing) + sum(
            x[None] * next(rows).reshape(trailing) for channels in features for x in channels.scaled()
        )
