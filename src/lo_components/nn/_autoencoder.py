import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Linear, check_sizes


class Autoencoder(eqx.Module):
    """An MLP from pixels to pixels: a hidden layer, a code of a quarter of its size, a hidden layer, and a sigmoid.

    ??? cite "Source"
        The autoencoders of google/learned_optimization (`ImageMLPAE`), here with one hidden layer on each side.
    """

    layers: tuple[Linear, ...]

    def __init__(
        self,
        in_size: Axis | int,
        *,
        width: int,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`: the number of pixels, as in [`lo_components.nn.MLP`][].
        - `width`: the number of units of a hidden layer, a multiple of 4.
        - `parametrization`, `base_width`: as in [`lo_components.nn.MLP`][]; `base_width` is a multiple of 4 too.
        - `key`: for the initial values.

        Raises `ValueError` if a size is below 1 or a width is not a multiple of 4.
        """
        pixels = in_size.size if isinstance(in_size, Axis) else in_size
        check_sizes(in_size=pixels, width=width, base_width=base_width)
        for name, value in (("width", width), ("base_width", base_width)):
            if value is not None and value % 4:
                raise ValueError(f"`{name}` must be a multiple of 4, got {value}.")
        code = Axis.growing(width // 4, base_width and base_width // 4)
        sizes = [in_size, code.times(4), code, code.times(4), pixels]
        self.layers = tuple(
            Linear(n, m, parametrization=parametrization, key=k)
            for n, m, k in zip(sizes[:-1], sizes[1:], jax.random.split(key, 4), strict=True)
        )

    def __call__(self, x: Float[Array, "*image"], *, key: PRNGKeyArray | None = None) -> Float[Array, " pixels"]:
        """The pixels in [0, 1] for one image `x` of any shape; `key` is ignored."""
        x = jnp.ravel(x)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return jax.nn.sigmoid(self.layers[-1](x))
