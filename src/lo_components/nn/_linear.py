import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..parametrization import AbstractParametrization, WidthSpec


class Linear(eqx.Module):
    r"""$y = \alpha\, W x + b$ with initialization and $\alpha$ from a parametrization, $W$ stored as `[out, in]`.

    Weights are drawn from a normal distribution truncated at two standard deviations (without variance correction, as
    in the muLO paper), biases from a normal distribution.
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
        draws = jax.random.truncated_normal(weight_key, -2.0, 2.0, width.shape, jnp.float32)
        self.weight = parametrization.init_std(width) * draws
        bias = _bias(width)
        self.bias = parametrization.init_std(bias) * jax.random.normal(bias_key, bias.shape, jnp.float32)
        self.multiplier = float(parametrization.forward_multiplier(width))
        self.width = width

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """The layer's output for one example."""
        return self.multiplier * (self.weight @ x) + self.bias


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
