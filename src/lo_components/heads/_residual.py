import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead, check_channels
from ._linear import LinearHead
from ._mlp import MLPHead


class ResidualHead(AbstractHead):
    r"""One input channel plus a learned correction, which is zero at first: $o = x_c + w^\top x + f(x)$.

    If the channel is the momentum, meta-training starts from a rule that works, rather than from a random one, and what
    it finds can be compared with that rule alone, which is [`lo_components.heads.IdentityHead`][]. $w$ and the last
    layer of the MLP $f$ start at zero. Where all channels are 0, as without any gradient so far, so is the correction.
    """

    linear: LinearHead
    mlp: MLPHead
    channel: int = eqx.field(static=True)
    out_size: int = eqx.field(default=1, init=False, static=True)

    def __init__(self, in_size: int, channel: int, *, hidden_size: int = 8, hidden_layers: int = 1, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`: the number of input channels.
        - `channel`: the index $c$ of the channel to correct.
        - `hidden_size`, `hidden_layers`: of the MLP.
        - `key`: for the initial weights.

        Raises `ValueError` if there is no such channel.
        """
        if not 0 <= channel < in_size:
            raise ValueError(f"`channel` must be between 0 and {in_size - 1}, got {channel}.")
        linear = LinearHead(in_size, 1, key=key)
        mlp = MLPHead(in_size, 1, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
        self.linear = jax.tree.map(jnp.zeros_like, linear)
        self.mlp = eqx.tree_at(lambda m: m.weights[-1], mlp, replace_fn=jnp.zeros_like)
        self.channel = channel

    @property
    def in_size(self) -> int:
        return self.mlp.in_size

    @property
    def blockwise(self) -> bool:
        return self.mlp.blockwise

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        check_channels(features, self.in_size)
        channels = [x for group in features for x in group.scaled()]
        some = functools.reduce(jnp.logical_or, [x != 0.0 for x in channels])
        correction = self.linear(features, view) + self.mlp(features, view)
        return channels[self.channel][None] + jnp.where(some[None], correction, 0.0)
