from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class LSTMState(NamedTuple):
    """State of an [`lo_components.schedules.LSTM`][].

    **Arguments:**

    - `hidden`, `cell`: `[*batch, size]`.
    """

    hidden: Float[Array, "*batch size"]
    cell: Float[Array, "*batch size"]

    def repeated(self, *batch: int) -> "LSTMState":
        """A state with leading axes of the sizes `batch`, the same along these."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), self)


class LSTM(eqx.Module):
    r"""A long short-term memory cell, with 1 added to the argument of the forget gate.

    With $(i, g, f, o) = [x, h]\, W + b$: $c' = \sigma(f + 1)\, c + \sigma(i) \tanh g$ and $h' = \sigma(o) \tanh c'$.
    States have no part in the cell: a learner that learns the first one holds it beside the cell.

    ??? cite "Source"
        The cell of Haiku and Sonnet, which published learned optimizers use.
    """

    weight: Float[Array, "inputs gates"]
    bias: Float[Array, " gates"]

    def __init__(self, in_size: int, size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`: the number of inputs.
        - `size`: the number of units.
        - `key`: for the initial weights, which are truncated normal with standard deviation $1/\\sqrt{\\text{fan-in}}$.
        """
        rows = in_size + size
        self.weight = jax.random.truncated_normal(key, -2.0, 2.0, (rows, 4 * size), jnp.float32) * rows**-0.5
        self.bias = jnp.zeros(4 * size, jnp.float32)

    @property
    def size(self) -> int:
        """The number of units."""
        return self.bias.shape[0] // 4

    def zeros(self, *batch: int) -> LSTMState:
        """A state of zeros with leading axes of the sizes `batch`."""
        return LSTMState(jnp.zeros((*batch, self.size), jnp.float32), jnp.zeros((*batch, self.size), jnp.float32))

    def __call__(self, x: Float[Array, "*batch in_size"], state: LSTMState) -> LSTMState:
        """The next state, whose `hidden` is the output.

        **Arguments:**

        - `x`: the inputs.
        - `state`: the last state, with the same batch axes.
        """
        gates = jnp.concatenate([x, state.hidden], axis=-1) @ self.weight
        gates = gates + self.bias.reshape((1,) * (gates.ndim - 1) + (-1,))
        i, g, f, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)
