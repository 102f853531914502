import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Conv, Linear, check_sizes


class CNN(eqx.Module):
    """Strided 3x3 convolutions with ReLU, the mean over positions, and a linear readout, for one image.

    ??? cite "Source"
        The three-layer convolutional networks of LAgg-A (arXiv 2312.02204) and of google/learned_optimization: 32, 64
        and 64 channels there; here all layers have `width` channels but the first, which has half of them.
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

        - `in_channels`, `out_size`: the image's channels (1 for gray images) and the number of outputs.
        - `width`: channels of the last convolution, an even number; so is the base width.
        - `depth`: the number of convolutions, at least 1. The first two halve the image's sides.
        - `parametrization`, `base_width`, `key`: as in [`lo_components.nn.MLP`][].
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
        """The outputs for one image, gray or `[height, width, channels]`."""
        x = x.reshape(*x.shape[:2], -1)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.readout(jnp.mean(x, (0, 1)))
