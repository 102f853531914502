from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._lstm import LSTM, LSTMState
from ._base import AbstractAccumulator
from ._view import TensorView


class HiddenUnits(NamedTuple):
    """The output of a recurrent network for each parameter.

    **Arguments:**

    - `h`: one channel for each unit, `[units, *shape]`.
    """

    h: Float[Array, "units *shape"]


class RecurrentState(NamedTuple):
    """State of a [`lo_components.accumulators.RecurrentNetwork`][].

    **Arguments:**

    - `layers`: the state of each layer, whose arrays are `[units, *shape]`.
    """

    layers: tuple[LSTMState, ...]


class RecurrentNetwork(AbstractAccumulator[RecurrentState]):
    """Layers of LSTM cells that see each parameter alone, with the same weights for all. States start at zero.

    The memory of a parameter is twice the number of units.

    ??? cite "Source"
        Andrychowicz et al., *Learning to learn by gradient descent by gradient descent* (arXiv 1606.04474).
    """

    produces: ClassVar = HiddenUnits
    pointwise_on_vectors: ClassVar[bool] = True
    inputs: Callable[[TensorView], tuple[Any, ...]]
    layers: tuple[LSTM, ...]

    def __init__(self, inputs: Any, sizes: tuple[int, ...] = (20, 20), *, key: PRNGKeyArray):
        """**Arguments:**

        - `inputs`: the feature that the first layer sees, such as [`lo_components.features.LogAndSign`][]. It may
            require no statistics.
        - `sizes`: the number of units of each layer.
        - `key`: for the initial weights.

        Raises `ValueError` if `sizes` is empty, or if `inputs` requires statistics.
        """
        if not sizes:
            raise ValueError("`sizes` must have one entry for each layer, got none.")
        if inputs.requires:
            raise ValueError("`inputs` must not require statistics, which accumulators do not see.")
        self.inputs = inputs
        ins = (inputs.size, *sizes[:-1])
        keys = jax.random.split(key, len(sizes))
        self.layers = tuple(LSTM(n, m, key=k) for n, m, k in zip(ins, sizes, keys, strict=True))

    def init(self, param: Float[Array, "*shape"]) -> RecurrentState:
        return RecurrentState(tuple(_units_first(layer.zeros(*param.shape)) for layer in self.layers))

    def update(self, view: TensorView, state: RecurrentState) -> RecurrentState:
        channels = [jnp.broadcast_to(x, view.param.shape) for c in self.inputs(view) for x in c.scaled()]
        x, states = jnp.stack(channels, axis=-1), []
        for layer, last in zip(self.layers, state.layers, strict=True):
            new = layer(x, jax.tree.map(lambda y: jnp.moveaxis(y, 0, -1), last))
            x = new.hidden
            states.append(_units_first(new))
        return RecurrentState(tuple(states))

    def read(self, state: RecurrentState) -> HiddenUnits:
        return HiddenUnits(state.layers[-1].hidden)


def _units_first(state: LSTMState) -> LSTMState:
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), state)
