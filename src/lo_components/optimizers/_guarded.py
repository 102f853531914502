from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._types import Params, typechecked
from ..parametrization import UpdateRule
from ._base import AbstractOptimizer, StepContext, checked_update
from ._optax import as_optimizer


class GuardedState(NamedTuple):
    """State of a [`lo_components.optimizers.Guarded`][] optimizer.

    **Arguments:**

    - `optimizer`, `fallback`: the states of the two optimizers, both of which see every gradient.
    - `fell_back`: whether the last update was that of the fallback.
    """

    optimizer: Any
    fallback: Any
    fell_back: Bool[Array, ""]


class Guarded(AbstractOptimizer[GuardedState]):
    """Takes the update of a fallback, such as Adam, in each step in which it leads to a lower loss.

    So a learned optimizer that fails where it was not meta-trained seldom makes a bad step. Both candidates are
    evaluated on the function in `StepContext(loss_fn=...)`, or `value_fn=...` of an optax transformation: two more
    forward passes a step. The fallback is also taken if the loss of the other is not finite. Put scales, schedules and
    weight decay inside, around each of the two, since updates are compared as they are. Measure the loss on other data
    than the gradient, if you can: on the same batch, large steps look better than they are.

    **Arguments:**

    - `optimizer`: the optimizer to guard, or an optax transformation.
    - `fallback`: another one.

    `update` raises `ValueError` without the function. `update_rules` raises it if the two optimizers differ.

    ??? cite "Source"
        After Premont-Schwarz et al., *A Simple Guard for Learned Optimizers* (arXiv 2201.12426).
    """

    optimizer: AbstractOptimizer = eqx.field(converter=as_optimizer)
    fallback: AbstractOptimizer = eqx.field(converter=as_optimizer)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """The rules of both optimizers.

        **Arguments:**

        - `params`: a pytree of floating-point arrays.

        **Returns:** a rule for each leaf of `params`.

        Raises `ValueError` if they differ: scale each of them instead.
        """
        rules, others = (o.update_rules(params) for o in (self.optimizer, self.fallback))
        if rules != others:
            raise ValueError(
                "The two optimizers have different update rules; wrap each of them in "
                "`lo_components.optimizers.Scaled` instead of the guarded one."
            )
        return rules

    @typechecked
    def init(self, params: Params) -> GuardedState:
        return GuardedState(self.optimizer.init(params), self.fallback.init(params), jnp.zeros((), bool))

    @checked_update
    def update(
        self, grads: Params, state: GuardedState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, GuardedState]:
        if context.loss_fn is None:
            raise ValueError(
                "A guarded optimizer compares losses: pass `StepContext(loss_fn=...)` to `update`, or `value_fn=...` "
                "to that of an optax transformation."
            )
        updates, optimizer = self.optimizer.update(grads, state.optimizer, params, context=context)
        others, fallback = self.fallback.update(grads, state.fallback, params, context=context)
        loss, other = (context.loss_fn(jax.tree.map(jnp.add, params, u)) for u in (updates, others))
        worse = ~(loss <= other) | ~jnp.isfinite(loss)
        updates = jax.tree.map(lambda u, o: jnp.where(worse, o, u), updates, others)
        return updates, GuardedState(optimizer, fallback, worse)
