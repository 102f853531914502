"""A model of the suite that the library does not have, made of its layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

import lo_components as loc
from lo_components.parametrization import AbstractParametrization, Axis


class NormalizedMLP(eqx.Module):
    """An MLP with layer normalization before each ReLU."""

    layers: tuple[loc.nn.Linear, ...]
    norms: tuple[loc.nn.LayerNorm, ...]

    def __init__(
        self,
        in_size: Axis,
        out_size: int,
        *,
        width: int,
        depth: int,
        parametrization: AbstractParametrization,
        base_width: int | None,
        key: PRNGKeyArray,
    ):
        hidden = Axis.growing(width, base_width)
        sizes = [in_size, *[hidden] * depth, out_size]
        keys = jax.random.split(key, depth + 1)
        self.layers = tuple(
            loc.nn.Linear(n, m, parametrization=parametrization, key=k)
            for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.norms = tuple(loc.nn.LayerNorm(hidden) for _ in range(depth))

    def __call__(self, x: Float[Array, "*image"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        x = jnp.ravel(x)
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = jax.nn.relu(norm(layer(x)))
        return self.layers[-1](x)
