from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .. import _learner, _tree
from .._types import Params, Scales, typechecked
from ..parametrization import UpdateRule
from ._base import AbstractOptimizer, StepContext, checked_update
from ._optax import as_optimizer

StateT = TypeVar("StateT")


class Scaled(AbstractOptimizer[StateT]):
    r"""Multiplies another optimizer's update leaf by leaf: $\Delta p_l \leftarrow s_l\, \Delta p_l$.

    With the scales of a parametrization, Adam becomes muAdam and a learned optimizer becomes muLO. The wrapped
    optimizer, its meta-parameters and its state do not depend on the scales.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `scales`: a float or a scalar array for each leaf of the parameters, with the same path. Scales are constants:
        arrays, such as those of a vmapped sweep over multipliers, are not meta-learned.

    Parts that the parameters leave out (`None`, or masked by `optax.masked` and `optax.partition`) need no scale, and
    their scales are not used.

    `init` and `update` raise `ValueError` unless there is a scale for each leaf of the parameters.

    ??? cite "Source"
        muLO (arXiv 2406.00153), equation 3; Yang et al., *Tensor Programs V* (arXiv 2203.03466), table 8.
    """

    optimizer: AbstractOptimizer[StateT] = eqx.field(converter=as_optimizer)
    scales: Scales = eqx.field(converter=_learner.with_constants)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> StateT:
        _tree.checked_scales(self.scales, params)
        return self.optimizer.init(params)

    @checked_update
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        scales = _tree.checked_scales(self.scales, params)
        updates, state = self.optimizer.update(grads, state, params, context=context)
        return jax.tree.map(_tree.scaled, scales, updates), state


class Clipped(AbstractOptimizer[StateT]):
    r"""Clips gradients by their global norm before another optimizer: $g \leftarrow g \min(1, c / \lVert g \rVert)$.

    The norm is taken over all leaves together. If it is not finite, all gradients become NaN, so failures are visible.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `max_norm`: $c$, positive.

    Raises `ValueError` if `max_norm` is not positive.
    """

    optimizer: AbstractOptimizer[StateT] = eqx.field(converter=as_optimizer)
    max_norm: float | int = eqx.field(static=True)

    def __check_init__(self):
        if not self.max_norm > 0:
            raise ValueError(f"`max_norm` must be positive, got {self.max_norm}.")

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> StateT:
        return self.optimizer.init(params)

    @checked_update
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        # Squares of gradients above 1e19 would overflow, and so would the inverse of the largest, hence its root.
        scale = jax.lax.rsqrt(jnp.maximum(_largest(grads), 1.0))
        units = jax.tree.map(lambda g: jnp.asarray(g).astype(jnp.float32) * scale * scale, grads)
        norm = optax.tree.norm(units)
        limit = jnp.where(jnp.isfinite(norm), self.max_norm, jnp.nan)

        def clip(unit, grad):
            grad = jnp.asarray(grad)
            return jnp.where(norm <= limit * scale * scale, grad, (unit * (limit / norm)).astype(grad.dtype))

        clipped = jax.tree.map(clip, units, grads)
        return self.optimizer.update(clipped, state, params, context=context)


class ClippedByValue(AbstractOptimizer[StateT]):
    r"""Clips each element of the gradients to $\pm c$ before another optimizer. NaN stays.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `limit`: $c$, positive.

    Raises `ValueError` if `limit` is not positive.
    """

    optimizer: AbstractOptimizer[StateT] = eqx.field(converter=as_optimizer)
    limit: float | int = eqx.field(default=1000.0, static=True)

    def __check_init__(self):
        if not self.limit > 0:
            raise ValueError(f"`limit` must be positive, got {self.limit}.")

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> StateT:
        return self.optimizer.init(params)

    @checked_update
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        clipped = jax.tree.map(lambda g: jnp.clip(jnp.asarray(g), -self.limit, self.limit), grads)
        return self.optimizer.update(clipped, state, params, context=context)


def _largest(tree: PyTree) -> Float[Array, ""]:
    """The largest absolute value; NaN if there is one, infinity if one is infinite."""
    leaves = [jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0.0) for x in map(jnp.asarray, jax.tree.leaves(tree))]
    return jnp.max(jnp.stack(leaves)) if leaves else jnp.zeros((), jnp.float32)


class Decayed(AbstractOptimizer[StateT]):
    r"""Adds decoupled weight decay to another optimizer: $\Delta p \leftarrow \Delta p - \lambda p$.

    Inside or around [`lo_components.optimizers.Scaled`][], it gives the two conventions of muAdamW:

    - `Scaled(Decayed(adam, lr * wd), scales)`: the decay is scaled with the update, as if the scales multiplied AdamW's
      learning rate (the muLO paper's code; the usual reading of table 8).
    - `Decayed(Scaled(adam, scales), lr * wd)`: the decay is the same at every width, as in the mup package. Wang &
      Aitchison (arXiv 2405.13698) find that this convention transfers across widths.

    **Arguments:**

    - `optimizer`: the optimizer to wrap, or an optax transformation.
    - `rate`: $\lambda$, the decay per step: the learning rate times AdamW's coefficient.
    - `min_ndim`: tensors with fewer axes are not decayed: 2 exempts biases and normalization scales.

    ??? cite "Source"
        Loshchilov & Hutter, *Decoupled Weight Decay Regularization* (arXiv 1711.05101).
    """

    optimizer: AbstractOptimizer[StateT] = eqx.field(converter=as_optimizer)
    rate: float | Float[Array, ""]
    min_ndim: int = eqx.field(default=0, static=True)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return self.optimizer.update_rules(params)

    @typechecked
    def init(self, params: Params) -> StateT:
        return self.optimizer.init(params)

    @checked_update
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        updates, state = self.optimizer.update(grads, state, params, context=context)

        def decayed(update, param):
            update, param = jnp.asarray(update), jnp.asarray(param)
            if param.ndim < self.min_ndim:
                return update
            decay = jnp.asarray(self.rate, jnp.float32) * param.astype(jnp.float32)
            return (update.astype(jnp.float32) - decay).astype(update.dtype)

        return jax.tree.map(decayed, updates, params), state
