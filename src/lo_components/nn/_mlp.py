from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, WidthSpec
from ._linear import Linear


class MLP(eqx.Module):
    """A multi-layer perceptron for one example of any shape, which it flattens; `jax.vmap` it over a batch.

    ??? cite "Source"
        The MLP tasks of muLO (arXiv 2406.00153): `depth` hidden layers of `width` units and a linear readout.
    """

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        width: int,
        depth: int,
        parametrization: AbstractParametrization = SP(),
        base_width: int = 1,
        activation: Callable = jax.nn.relu,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`, `out_size`: the number of inputs and outputs.
        - `width`: units per hidden layer.
        - `depth`: the number of hidden layers, at least 1.
        - `parametrization`: [`lo_components.parametrization.SP`][] or [`lo_components.parametrization.MuP`][].
        - `base_width`: the width at which every multiplier is 1. The papers' absolute convention is 1.
        - `activation`: after each hidden layer.
        - `key`: for the initial values.
        """
        for name, value in dict(
            in_size=in_size, out_size=out_size, width=width, depth=depth, base_width=base_width
        ).items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        mult = width / base_width
        widths = [
            WidthSpec((width, in_size), "input", in_size, fan_out_mult=mult),
            *[WidthSpec((width, width), "hidden", width, fan_in_mult=mult, fan_out_mult=mult)] * (depth - 1),
            WidthSpec((out_size, width), "output", width, fan_in_mult=mult),
        ]
        keys = jax.random.split(key, len(widths))
        self.layers = tuple(
            Linear(w, parametrization=parametrization, key=k) for w, k in zip(widths, keys, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "*in_shape"]) -> Float[Array, " out"]:
        """The outputs for one example."""
        x = jnp.ravel(x)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
