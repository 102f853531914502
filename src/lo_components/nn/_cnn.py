import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Conv, Linear, check_sizes


class CNN(eqx.Module):
    """A convolutional network for one image: 3x3 convolutions with ReLU, mean pooling, and a linear readout.

    ??? cite "Source"
        The three-layer convolutional networks of LAgg-A (arXiv 2312.02204) and google/learned_optimization, with 32,
        64 and 64 channels. Here the first layer has `width / 2` channels and all others `width`.
    """

    convs: tuple[Conv, ...]
    readout: Linear

    def __init__(
        self,
        in_channels: int,
        out_size: int,
        *,
        width: int = 64,
        depth: int = 3,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_size`: the number of image channels (1 for gray images) and of outputs.
        - `width`: the number of channels of the last convolution; it and the base width must be even.
        - `depth`: the number of convolutions, at least 1. The first two have stride 2.
        - `parametrization`, `base_width`, `key`: as in [`lo_components.nn.MLP`][].

        Raises `ValueError` if a size is below 1 or a width is odd.
        """
        check_sizes(in_channels=in_channels, out_size=out_size, width=width, depth=depth, base_width=base_width)
        if width % 2 or (base_width or 2) % 2:
            raise ValueError(f"`width` and `base_width` must be even, got {width} and {base_width}.")
        half = Axis.growing(width // 2, base_width and base_width // 2)
        channels = [in_channels, half, *[half.times(2)] * (depth - 1)]
        *keys, readout_key = jax.random.split(key, depth + 1)
        self.convs = tuple(
            Conv(n, m, kernel_size=3, stride=2 if i < 2 else 1, parametrization=parametrization, key=k)
            for i, (n, m, k) in enumerate(zip(channels[:-1], channels[1:], keys, strict=True))
        )
        self.readout = Linear(channels[-1], out_size, parametrization=parametrization, key=readout_key)

    def __call__(self, x: Float[Array, "height width *c"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        """The outputs for one image `x`, gray or `[height, width, channels]`; `key` is ignored."""
        x = x.reshape(*x.shape[:2], -1)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.readout(jnp.mean(x, (0, 1)))
