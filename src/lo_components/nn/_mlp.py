from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Linear, check_sizes


class MLP(eqx.Module):
    """A multi-layer perceptron for one example of any shape, which it flattens; `jax.vmap` it over a batch.

    ??? cite "Source"
        The MLP tasks of muLO (arXiv 2406.00153): `depth` hidden layers of `width` units and a linear readout.
    """

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)

    def __init__(
        self,
        in_size: Axis | int,
        out_size: int,
        *,
        width: int,
        depth: int,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        activation: Callable = jax.nn.relu,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`, `out_size`: the number of inputs and outputs. For inputs whose number differs from the base
            model's, as those of larger images, an [`lo_components.parametrization.Axis`][]: `Axis.growing(3072, 64)`.
            Then the first layer is scaled as a hidden one, with `hidden_mult`, not `input_mult`.
        - `width`: units per hidden layer.
        - `depth`: the number of hidden layers, at least 1.
        - `parametrization`: for instance [`lo_components.parametrization.SP`][] or
            [`lo_components.parametrization.MuP`][].
        - `base_width`: the width at which every multiplier is 1; `None`: the papers' absolute convention.
        - `activation`: after each hidden layer.
        - `key`: for the initial values.
        """
        inputs = None if isinstance(in_size, Axis) else in_size  # an `Axis` checks itself
        check_sizes(in_size=inputs, out_size=out_size, width=width, depth=depth, base_width=base_width)
        hidden = Axis.growing(width, base_width)
        sizes = [in_size, *[hidden] * depth, out_size]
        keys = jax.random.split(key, depth + 1)
        self.layers = tuple(
            Linear(n, m, parametrization=parametrization, key=k)
            for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "*in_shape"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        """The outputs for one example."""
        x = jnp.ravel(x)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
