from typing import Any

import equinox as eqx
import optax

from .._types import Params, typechecked
from ._base import AbstractOptimizer, StepContext, cast_like, checked_update


class OptaxOptimizer(AbstractOptimizer[optax.OptState]):
    """Any optax transformation as an optimizer, for instance as a baseline in an unroll.

    The context's `loss` is passed on as optax's extra argument `value`, `num_steps` under its own name.
    Hyperparameters inside the transformation are constants; to differentiate or `vmap` over a learning rate use
    [`lo_components.optimizers.Adam`][] or [`lo_components.optimizers.SGD`][].

    **Arguments:**

    - `transformation`: an `optax.GradientTransformation`, with or without extra arguments.
    """

    transformation: optax.GradientTransformation = eqx.field(static=True)

    @typechecked
    def init(self, params: Params) -> optax.OptState:
        return self.transformation.init(params)

    @checked_update
    def update(
        self, grads: Params, state: optax.OptState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, optax.OptState]:
        extra: dict[str, Any] = {}
        if context.loss is not None:
            extra["value"] = context.loss_array()
        if context.num_steps is not None:
            extra["num_steps"] = context.num_steps_array()
        transformation = optax.with_extra_args_support(self.transformation)
        updates, state = transformation.update(grads, state, params, **extra)
        return cast_like(updates, params), state


def as_optimizer(
    optimizer: AbstractOptimizer | optax.GradientTransformation, name: str = "optimizer"
) -> AbstractOptimizer:
    """An optimizer of this library as it is, an optax transformation as [`lo_components.optimizers.OptaxOptimizer`][].

    **Arguments:**

    - `optimizer`: one or the other.
    - `name`: what an error calls it.

    Raises `TypeError` for anything else.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return OptaxOptimizer(optimizer)
    if not isinstance(optimizer, AbstractOptimizer):
        raise TypeError(f"`{name}` must be an optimizer or an optax transformation, got {optimizer!r}.")
    return optimizer


def as_optax(optimizer: AbstractOptimizer) -> optax.GradientTransformationExtraArgs:
    """An optimizer as an optax transformation, to use alone or inside `optax.chain`.

    **Arguments:**

    - `optimizer`: any optimizer of this library.

    **Returns:** a transformation whose `update(grads, state, params, *, value=None, num_steps=None)` needs `params`;
    `value` is optax's own name for the loss. Extra arguments meant for others are ignored, as optax asks.

    Gradients with respect to the meta-parameters flow through `optimizer`: build the transformation inside the
    function you differentiate.
    """

    def init(params):
        return optimizer.init(params)

    def update(updates, state, params=None, *, value=None, num_steps=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "A learned optimizer needs the parameters: call `update(grads, state, params)` with `params`."
            )
        return optimizer.update(updates, state, params, context=StepContext(loss=value, num_steps=num_steps))

    return optax.GradientTransformationExtraArgs(init, update)
