import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._tree import BLOCKED_FROM, check_state
from .._types import Params, typechecked
from ..parametrization import SCALE_FREE, UpdateRule, every_leaf
from ..schedules import LSTM, Linear, LSTMState
from ._base import AbstractOptimizer, StepContext, cast_like, checked_update

_NUM_INPUTS = 19


class NNAdamState(NamedTuple):
    """State of an [`lo_components.optimizers.NNAdam`][] optimizer.

    All but `step` are in the structure of the parameters.

    **Arguments:**

    - `step`: the number of updates made.
    - `m`, `v`: moving averages of the gradient and of its square.
    - `hyperparameters`: a tenth of the logarithms of the learning rate, $1 - \\beta_1$, $1 - \\beta_2$ and $\\epsilon$,
        `[4]` for each tensor.
    - `hidden`, `cell`: the state of the recurrent network, `[units]` for each tensor.
    """

    step: Int[Array, ""]
    m: Params
    v: Params
    hyperparameters: PyTree[Float[Array, " 4"]]
    hidden: PyTree[Float[Array, " units"]]
    cell: PyTree[Float[Array, " units"]]


class NNAdam(AbstractOptimizer[NNAdamState]):
    r"""Adam, with hyperparameters that a recurrent network changes at each step, for each tensor on its own.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
      \Delta p = -\frac{\alpha\, (1 + \epsilon)}{\epsilon + \sqrt{v + 10^{-10}}}\, m,$$

    without bias correction. The network then sees 19 numbers of the tensor: logarithms of the means and variances of
    $g$, $m$, $v$ and $p$, the signs of the means, the rank and the hyperparameters. It moves the logarithms of the
    hyperparameters, and they are pulled back to where they started; the change takes effect in the next step. They stay
    within $10^{-8} \le \alpha \le 10^3$, $0 \le \beta \le 1 - e^{-10}$ and $10^{-11} \le \epsilon \le 10^4$.

    Gradients should be clipped, as [`lo_components.recipes.nn_adam`][] does, lest their squares overflow.

    ??? cite "Source"
        Metz et al., *Practical tradeoffs between memory, compute, and performance in learned optimizers*
        (arXiv 2203.11860); `NNAdam` of google/learned_optimization.
    """

    learning_rate: Float[Array, ""]
    b1: Float[Array, ""]
    b2: Float[Array, ""]
    eps: Float[Array, ""]
    lstm: LSTM
    start: LSTMState
    readout: Linear
    output_scale: float = eqx.field(static=True)
    pull: float = eqx.field(static=True)

    def __init__(
        self,
        size: int = 32,
        *,
        learning_rate: float = 1e-4,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        output_scale: float = 0.01,
        pull: float = 0.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `size`: the number of units of the network.
        - `learning_rate`, `b1`, `b2`, `eps`: initial hyperparameters. All tensors start with them; they are
            meta-learned, in logarithms.
        - `output_scale`: multiplies the outputs of the network, whose last weights are zero at first.
        - `pull`: the share of its distance from the start by which a hyperparameter is pulled back in each step.
        - `key`: for the initial weights.
        """
        lstm_key, readout_key = jax.random.split(key)
        self.learning_rate, self.b1, self.b2, self.eps = (
            jnp.asarray(0.1 * math.log(x), jnp.float32) for x in (learning_rate, 1.0 - b1, 1.0 - b2, eps)
        )
        self.lstm = LSTM(_NUM_INPUTS, size, key=lstm_key)
        self.start = self.lstm.zeros()
        self.readout = jax.tree.map(jnp.zeros_like, Linear(size, 4, key=readout_key))
        self.output_scale = output_scale
        self.pull = pull

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return every_leaf(params, SCALE_FREE)

    @typechecked
    def init(self, params: Params) -> NNAdamState:
        def every(x: Float[Array, " k"]) -> PyTree[Float[Array, " k"]]:
            return jax.tree.map(lambda _: x, params)

        zeros = jax.tree.map(lambda p: jnp.zeros_like(jnp.asarray(p), jnp.float32), params)
        step = jnp.zeros((), jnp.int32)
        return NNAdamState(step, zeros, zeros, every(self._first()), every(self.start.hidden), every(self.start.cell))

    @checked_update
    def update(
        self, grads: Params, state: NNAdamState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, NNAdamState]:
        """One step.

        **Arguments:**

        - `grads`: the gradients, with the structure and shapes of `params`.
        - `state`: from `init` or the previous `update`.
        - `params`: the parameters before the step.
        - `context`: not used.

        **Returns:** the update to add to `params`, in their dtypes, and the next state.

        Raises `ValueError` if `grads` or `state` does not match `params`.
        """
        check_state(state, self.init, params)
        leaves, treedef = jax.tree.flatten(params)
        if not leaves:
            return params, state._replace(step=state.step + 1)
        trees = (grads, state.m, state.v, params, state.hyperparameters)
        tensors = list(zip(*map(treedef.flatten_up_to, trees), strict=True))
        results: dict[int, Any] = {}
        for group in _same_shapes(leaves):
            results |= zip(group, _adam_of_group([tensors[i] for i in group]), strict=True)
        updates, m, v, inputs = zip(*(results[i] for i in range(len(leaves))), strict=True)
        rows = [jnp.stack(treedef.flatten_up_to(x)) for x in (state.hidden, state.cell, state.hyperparameters)]
        lstm = self.lstm(jnp.stack(inputs), LSTMState(*rows[:2]))
        numbers = self._changed(rows[2], lstm)
        new = [treedef.unflatten(list(x)) for x in (m, v, numbers, lstm.hidden, lstm.cell)]
        return cast_like(treedef.unflatten(updates), params), NNAdamState(state.step + 1, *new)

    def _first(self) -> Float[Array, " 4"]:
        return jnp.stack([self.learning_rate, self.b1, self.b2, self.eps])

    def _changed(self, numbers: Float[Array, "tensors 4"], lstm: LSTMState) -> Float[Array, "tensors 4"]:
        """The hyperparameters of all tensors for the next step."""
        numbers = numbers + self.output_scale * self.readout(lstm.hidden)
        numbers = numbers - self.pull * (numbers - self._first()[None])
        learning_rate, b1, b2, eps = _values(numbers)
        return 0.1 * jnp.log(jnp.stack([learning_rate, 1.0 - b1, 1.0 - b2, eps], axis=-1))


def _values(numbers: Float[Array, "*batch 4"]) -> tuple[Float[Array, "*batch"], ...]:
    """Learning rate, decay rates and epsilon, within their limits."""
    learning_rate, b1, b2, eps = (10.0 * numbers[..., i] for i in range(4))
    decays = [1.0 - jnp.exp(jnp.clip(b, -10.0, 0.0)) for b in (b1, b2)]
    return jnp.clip(jnp.exp(learning_rate), 1e-8, 1e3), *decays, jnp.clip(jnp.exp(eps), 1e-11, 1e4)


def _same_shapes(leaves: list) -> list[list[int]]:
    """The indices of tensors to compute together: those of one shape, unless stacking them would be expensive."""
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(map(jnp.asarray, leaves)):
        kind = leaf.shape, jax.typeof(leaf).sharding
        groups.setdefault(kind if leaf.size < BLOCKED_FROM else i, []).append(i)
    return list(groups.values())


def _adam_of_group(tensors: list[tuple]) -> list[tuple]:
    """The results of `_adam` for tensors of one shape."""
    floats = [[jnp.asarray(x).astype(jnp.float32) for x in tensor] for tensor in tensors]
    if len(tensors) == 1:
        return [_adam(*floats[0])]
    stacked = jax.lax.optimization_barrier([jnp.stack(x) for x in zip(*floats, strict=True)])
    return list(zip(*jax.vmap(_adam)(*stacked), strict=True))


def _adam(
    grad: Float[Array, "*shape"],
    m: Float[Array, "*shape"],
    v: Float[Array, "*shape"],
    param: Float[Array, "*shape"],
    numbers: Float[Array, " 4"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, " inputs"]]:
    """The update of a tensor, its next moments, and what the network sees of it."""
    learning_rate, b1, b2, eps = _values(numbers)
    m = b1 * m + (1.0 - b1) * grad
    v = b2 * v + (1.0 - b2) * jnp.square(grad)
    update = -(learning_rate * (1.0 + eps)) / (eps + jnp.sqrt(v + 1e-10)) * m
    # In the alphabetical order of their names in the original.
    means = {name: _mean(x) for name, x in (("g", grad), ("m", m), ("p", param), ("v", v))}
    variances = [_mean(jnp.square(x - means[name])) for name, x in (("g", grad), ("m", m), ("p", param), ("v", v))]
    mean_size = _log(_mean(jnp.abs(grad)))
    sizes_and_signs = [f(means[name]) for name in "gmpv" for f in (_log, jnp.sign)]
    ranks = [jnp.asarray(1.0 if grad.ndim == ndim else -1.0, jnp.float32) for ndim in (1, 0)]
    learning_rate, *others = 0.2 * numbers
    inputs = [*others, *ranks, learning_rate, *sizes_and_signs[:2], mean_size, *sizes_and_signs[2:]]
    return update, m, v, jnp.stack([*inputs, *map(_log, variances)])


def _mean(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The mean, 0 for an empty tensor."""
    return jnp.sum(x) / max(1, x.size)


def _log(x: Float[Array, ""]) -> Float[Array, ""]:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)
