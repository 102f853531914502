from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._types import Params, typechecked
from ..parametrization import UpdateRule
from ._base import AbstractOptimizer, StepContext, checked_update
from ._optax import as_optimizer


class ClippedAdaptivelyState(NamedTuple):
    """State of a [`lo_components.optimizers.ClippedAdaptively`][] optimizer.

    **Arguments:**

    - `step`: the number of updates made.
    - `size`: a moving average of the root mean square of clipped gradients.
    - `optimizer`: the state of the other optimizer.
    """

    step: Int[Array, ""]
    size: Float[Array, ""]
    optimizer: Any


class ClippedAdaptively(AbstractOptimizer[ClippedAdaptivelyState]):
    r"""Clips each element of the gradients at some multiple of their usual size before another optimizer.

    At the $k$-th step the limit is $c\, a / (1 - b^k)$, and then
    $a \leftarrow b\, a + (1 - b) \sqrt{10^{-8} + \bar g}$ with $\bar g$ the mean over tensors of mean squares after
    clipping. At first $a$ is $1 - b$.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `multiple`: $c$.
    - `decay`: $b$.

    ??? cite "Source"
        The gradient clipping of RNN-MLP, Metz et al. (arXiv 2009.11243).
    """

    optimizer: AbstractOptimizer = eqx.field(converter=as_optimizer)
    multiple: float = eqx.field(default=10.0, static=True)
    decay: float = eqx.field(default=0.99, static=True)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> ClippedAdaptivelyState:
        start = jnp.asarray(1.0 - self.decay, jnp.float32)
        return ClippedAdaptivelyState(jnp.zeros((), jnp.int32), start, self.optimizer.init(params))

    @checked_update
    def update(
        self, grads: Params, state: ClippedAdaptivelyState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, ClippedAdaptivelyState]:
        limit = self.multiple * state.size / (1.0 - self.decay ** (state.step.astype(jnp.float32) + 1.0))
        clipped = jax.tree.map(lambda g: jnp.clip(jnp.asarray(g).astype(jnp.float32), -limit, limit), grads)
        squares = [jnp.mean(jnp.square(g)) for g in jax.tree.leaves(clipped) if g.size]
        new = jnp.sqrt(1e-8 + sum(squares) / len(squares)) if squares else state.size
        grads = jax.tree.map(lambda g, old: g.astype(jnp.asarray(old).dtype), clipped, grads)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, params, context=context)
        size = self.decay * state.size + (1.0 - self.decay) * new
        return updates, ClippedAdaptivelyState(state.step + 1, size, optimizer)
