"""Layers for one example, each initialized, multiplied and declared by a parametrization."""

from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..parametrization import AbstractParametrization, Axis, WidthSpec
from ._base import AbstractWeightLayer


def _without_arrays(parametrization: AbstractParametrization) -> AbstractParametrization | None:
    """`None` for a parametrization with arrays, such as traced multipliers, which would count as parameters."""
    return None if any(map(eqx.is_array, jax.tree.leaves(parametrization))) else parametrization


def as_axis(units: Axis | int) -> Axis:
    """An `Axis`; an integer is a number of units that does not grow with the width."""
    return Axis.fixed(units) if isinstance(units, int) else units


def initial(shape: tuple[int, ...], std: float, *, truncated: bool, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Normal samples with standard deviation `std` before truncation. If `std` is 0, nothing is sampled or compiled."""
    sample = partial(jax.random.truncated_normal, key, -2.0, 2.0) if truncated else partial(jax.random.normal, key)
    if std:
        return std * sample(shape, jnp.float32)
    # Hidden from the compiler: jax 0.11 and 0.12 multiply sums by a constant matrix wrongly on CPUs (docs/faq.md).
    return jax.lax.optimization_barrier(jnp.zeros(shape, jnp.float32))


class Linear(AbstractWeightLayer):
    r"""$y = \alpha\, W x + b$ with initialization and $\alpha$ from a parametrization, $W$ stored as `[out, in]`.

    Weights are sampled from a normal distribution truncated at two standard deviations (without correction of the
    variance, as in the muLO paper), biases from a normal distribution. A readout's bias starts at zero.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None
    multiplier: float
    width: WidthSpec = eqx.field(static=True)
    out: Axis = eqx.field(static=True)
    parametrization: AbstractParametrization | None

    def __init__(
        self,
        fan_in: Axis | int,
        fan_out: Axis | int,
        *,
        parametrization: AbstractParametrization,
        use_bias: bool = True,
        residual: bool = False,
        bottleneck: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `fan_in`, `fan_out`: the inputs and outputs; an integer does not grow with the width.
        - `parametrization`: gives initialization and multiplier.
        - `use_bias`: whether there is a bias.
        - `residual`: whether the layer belongs to a residual branch.
        - `bottleneck`: whether other layers follow although the outputs do not grow. Otherwise such a layer is a
            readout, which starts at zero under muP.
        - `key`: for the initial values.
        """
        fan_in, self.out = as_axis(fan_in), as_axis(fan_out)
        shape = (self.out.size, fan_in.size)
        self.width = WidthSpec.weight(shape, fan_in, self.out, residual=residual, bottleneck=bottleneck)
        self.weight, self.bias = _weight_and_bias(self.width, self.out, use_bias, parametrization, key)
        self.multiplier = float(parametrization.forward_multiplier(self.width))
        self.parametrization = _without_arrays(parametrization)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """The layer's output for one example `x`, or for each of its tokens."""
        y = self.multiplier * (x @ self.weight.T)
        return y if self.bias is None else y + _like(self.bias, y)

    def declared(self) -> PyTree:
        return _declared(self, self.width, self.out)


class Conv(AbstractWeightLayer):
    r"""A two-dimensional convolution $\alpha\, W * x + b$ of one `[height, width, channels]` image, same padding.

    $W$ is stored as `[out, in / groups, kernel, kernel]`. The fan-in counts the inputs of one output. That of a
    depthwise convolution, with as many groups as channels, does not grow with the width, so its role is `"input"`.
    """

    weight: Float[Array, "out in kernel kernel"]
    bias: Float[Array, " out"] | None
    multiplier: float
    width: WidthSpec = eqx.field(static=True)
    out: Axis = eqx.field(static=True)
    parametrization: AbstractParametrization | None
    stride: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(
        self,
        fan_in: Axis | int,
        fan_out: Axis | int,
        *,
        kernel_size: int,
        stride: int = 1,
        depthwise: bool = False,
        parametrization: AbstractParametrization,
        use_bias: bool = True,
        residual: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `fan_in`, `fan_out`: the input and output channels; an integer does not grow with the width.
        - `kernel_size`, `stride`: in pixels, the same in both directions.
        - `depthwise`: whether each channel has its own filter.
        - `parametrization`, `use_bias`, `residual`, `key`: as in [`lo_components.nn.Linear`][].

        Raises `ValueError` if a depthwise convolution has different numbers of inputs and outputs.
        """
        fan_in, self.out = as_axis(fan_in), as_axis(fan_out)
        if depthwise and fan_in != self.out:
            raise ValueError(f"Depthwise convolutions have as many inputs as outputs, got {fan_in} and {self.out}.")
        self.groups = fan_in.size if depthwise else 1
        summed = Axis.fixed(1) if depthwise else fan_in
        shape = (self.out.size, summed.size, kernel_size, kernel_size)
        self.width = WidthSpec.weight(shape, summed, self.out, kernel_size=kernel_size**2, residual=residual)
        self.weight, self.bias = _weight_and_bias(self.width, self.out, use_bias, parametrization, key)
        self.multiplier = float(parametrization.forward_multiplier(self.width))
        self.parametrization = _without_arrays(parametrization)
        self.stride = stride

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "height2 width2 out"]:
        """The layer's output for one image `x`."""
        convolved = partial(_convolved, stride=self.stride, groups=self.groups)
        if self.groups == 1:
            # On CPUs a convolution inside a loop is 30 times slower than it should be (jax issue 12868).
            product = partial(_product_of_patches, stride=self.stride)
            y = jax.lax.platform_dependent(x, self.weight, cpu=product, default=convolved)
        else:
            y = convolved(x, self.weight)
        y = self.multiplier * y
        return y if self.bias is None else y + _like(self.bias, y)

    def declared(self) -> PyTree:
        return _declared(self, self.width, self.out)


class Embedding(AbstractWeightLayer):
    r"""One vector per token or position, $\alpha\, W_i$, with $W$ stored as `[tokens, units]`.

    It acts like a product with a one-hot vector: the role is `"input"` and the fan-in is the number of tokens, so the
    initial standard deviation is $1/\sqrt{\text{tokens}}$, as in the muLO paper's language models.
    """

    layout: ClassVar = "in_out"
    weight: Float[Array, "tokens units"]
    multiplier: float
    width: WidthSpec = eqx.field(static=True)
    parametrization: AbstractParametrization | None

    def __init__(
        self, num_tokens: int, units: Axis | int, *, parametrization: AbstractParametrization, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `num_tokens`: the number of vectors.
        - `units`: their length.
        - `parametrization`: gives initialization and multiplier.
        - `key`: for the initial values.
        """
        units = as_axis(units)
        self.width = WidthSpec.weight((num_tokens, units.size), Axis.fixed(num_tokens), units)
        std = parametrization.init_std(self.width)
        self.weight = initial(self.width.shape, std, truncated=False, key=key)
        self.multiplier = float(parametrization.forward_multiplier(self.width))
        self.parametrization = _without_arrays(parametrization)

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch units"]:
        """The vectors of `tokens`."""
        return self.multiplier * jnp.take(self.weight, tokens, axis=0)

    def declared(self) -> PyTree:
        return eqx.tree_at(lambda layer: layer.weight, self, self.width)


def _weight_and_bias(width: WidthSpec, out: Axis, use_bias: bool, parametrization, key: PRNGKeyArray):
    weight_key, bias_key = jax.random.split(key)
    weight = initial(width.shape, parametrization.init_std(width), truncated=True, key=weight_key)
    if not use_bias:
        return weight, None
    std = 0.0 if width.role == "output" else parametrization.init_std(_bias_width(width, out))
    return weight, initial((out.size,), std, truncated=False, key=bias_key)


def _declared(layer, width: WidthSpec, out: Axis):
    layer = eqx.tree_at(lambda n: n.weight, layer, width)
    if layer.bias is None:
        return layer
    return eqx.tree_at(lambda n: n.bias, layer, _bias_width(width, out))


def _bias_width(width: WidthSpec, out: Axis) -> WidthSpec:
    return WidthSpec.vector((out.size,), out, residual=width.residual)


def _convolved(
    x: Float[Array, "height width in"], weight: Float[Array, "out in2 k k"], *, stride: int, groups: int
) -> Float[Array, "height2 width2 out"]:
    return jax.lax.conv_general_dilated(
        x[None],
        weight,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=groups,
    )[0]


def _product_of_patches(
    x: Float[Array, "height width in"], weight: Float[Array, "out in k k"], *, stride: int
) -> Float[Array, "height2 width2 out"]:
    """The same convolution as one matrix product of all patches."""
    size = weight.shape[-1]
    ends = [stride * (-(-n // stride) - 1) + 1 for n in x.shape[:2]]
    missing = [max(0, end + size - 1 - n) for end, n in zip(ends, x.shape[:2], strict=True)]
    padded = jnp.pad(x, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    patches = [padded[i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(patches, axis=-1) @ jnp.transpose(weight, (2, 3, 1, 0)).reshape(-1, weight.shape[0])


def _like(vector: Float[Array, " c"], x: Float[Array, "*batch c"]) -> Float[Array, "*ones c"]:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def check_sizes(**sizes: int | None) -> None:
    """Raise `ValueError` unless every given size is at least 1."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def divided(name: str, value: int, parts: int, what: str) -> int:
    """`value / parts`. Raises `ValueError` if `parts` does not divide `value`."""
    if parts < 1:
        raise ValueError(f"There must be at least 1 of {what}, got {parts}.")
    if value % parts:
        raise ValueError(f"`{name}` must be a multiple of {what} ({parts}), got {value}.")
    return value // parts
