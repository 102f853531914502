from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Linear, check_sizes


class MLP(eqx.Module):
    """A multi-layer perceptron for one example of any shape, which is flattened; use `jax.vmap` for a batch.

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

        - `in_size`, `out_size`: the number of inputs and outputs. If the number of inputs differs from that of the
            base model, as for larger images, pass an [`lo_components.parametrization.Axis`][] such as
            `Axis.growing(3072, 64)`: the first layer is then scaled as a hidden layer, by `hidden_mult`.
        - `width`: the number of units per hidden layer.
        - `depth`: the number of hidden layers, at least 1.
        - `parametrization`: for instance [`lo_components.parametrization.SP`][] or
            [`lo_components.parametrization.MuP`][].
        - `base_width`: the width at which every multiplier is 1; `None` for the absolute convention of the papers.
        - `activation`: applied after each hidden layer.
        - `key`: for the initial values.

        Raises `ValueError` if a size is below 1.
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
        """The outputs for one example `x`; `key` is ignored."""
        x = jnp.ravel(x)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
