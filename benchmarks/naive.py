"""A naive evaluation of a per-parameter MLP, as a baseline: every channel is tiled to full size and stacked."""

import equinox as eqx
import jax
import jax.numpy as jnp

import lo_components as loc
from lo_components.accumulators import TensorView
from lo_components.features import Channels


class NaiveMLPHead(loc.AbstractHead):
    """The same function as an `MLPHead`, from `[channels, *shape]` normalized inputs."""

    head: loc.heads.MLPHead

    @property
    def in_size(self) -> int:
        return self.head.in_size

    @property
    def out_size(self) -> int:
        return self.head.out_size

    def __call__(self, features: tuple[Channels, ...], view: TensorView):
        shape = jnp.broadcast_shapes(*(c.values.shape[1:] for c in features))
        x = jnp.concatenate([jnp.broadcast_to(c.scaled(), (c.values.shape[0], *shape)) for c in features])
        x = jnp.moveaxis(x, 0, -1)
        for i, (weight, bias) in enumerate(zip(self.head.weights, self.head.biases, strict=True)):
            x = x @ weight + bias
            x = jax.nn.relu(x) if i + 1 < len(self.head.weights) else x
        return jnp.moveaxis(x, -1, 0)


def naive(optimizer: loc.LearnedOptimizer) -> loc.LearnedOptimizer:
    """The same optimizer, evaluated naively."""
    return eqx.tree_at(lambda o: o.pipeline.head, optimizer, NaiveMLPHead(optimizer.pipeline.head))
