from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..parametrization import AbstractParametrization, WidthSpec


class Linear(eqx.Module):
    r"""$y = \alpha\, W x + b$ with initialization and $\alpha$ from a parametrization, $W$ stored as `[out, in]`.

    Weights are drawn from a normal distribution truncated at two standard deviations (without variance correction, as
    in the muLO paper), biases from a normal distribution; a readout's bias starts at zero.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]
    multiplier: float
    width: WidthSpec = eqx.field(static=True)

    def __init__(self, width: WidthSpec, *, parametrization: AbstractParametrization, key: PRNGKeyArray):
        """**Arguments:**

        - `width`: the weight's declaration; its shape is `(out, in)`.
        - `parametrization`: gives initialization and multiplier.
        - `key`: for the initial values.
        """
        weight_key, bias_key = jax.random.split(key)
        bias = _bias(width)
        bias_std = 0.0 if width.role == "output" else parametrization.init_std(bias)
        truncated_normal = partial(jax.random.truncated_normal, weight_key, -2.0, 2.0)
        self.weight = _initial(width.shape, parametrization.init_std(width), truncated_normal)
        self.bias = _initial(bias.shape, bias_std, partial(jax.random.normal, bias_key))
        self.multiplier = float(parametrization.forward_multiplier(width))
        self.width = width

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """The layer's output for one example."""
        return self.multiplier * (self.weight @ x) + self.bias


def _initial(shape: tuple[int, ...], std: float, draw: Callable[..., Array]) -> Float[Array, "*shape"]:
    """`std` times a draw; none is made, or compiled, where `std` is 0."""
    return std * draw(shape, jnp.float32) if std else jnp.zeros(shape, jnp.float32)


def _bias(width: WidthSpec) -> WidthSpec:
    return WidthSpec(width.shape[:1], "vector", fan_out_mult=width.fan_out_mult)


def declared_widths(model: PyTree) -> PyTree[WidthSpec]:
    """The `WidthSpec` of every array of a model of this package.

    **Returns:** the structure of `equinox.filter(model, equinox.is_inexact_array)` with a `WidthSpec` in place of each
    array.
    """

    def declare(node):
        if isinstance(node, Linear):
            node = eqx.tree_at(lambda n: (n.weight, n.bias), node, (node.width, _bias(node.width)))
        return eqx.filter(node, lambda leaf: isinstance(leaf, WidthSpec))

    return jax.tree.map(declare, model, is_leaf=lambda node: isinstance(node, Linear))
