import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """An affine map $x W + b$, on any number of batch axes."""

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`, `out_size`: the numbers of inputs and outputs.
        - `key`: for the initial weights, truncated normal with standard deviation $1/\\sqrt{\\text{fan-in}}$.
        """
        self.weight = jax.random.truncated_normal(key, -2.0, 2.0, (in_size, out_size), jnp.float32) * in_size**-0.5
        self.bias = jnp.zeros(out_size, jnp.float32)

    def __call__(self, x: Float[Array, "*batch in_size"]) -> Float[Array, "*batch out_size"]:
        """The outputs.

        **Arguments:**

        - `x`: the inputs.
        """
        y = x @ self.weight
        return y + self.bias.reshape((1,) * (y.ndim - 1) + (-1,))
