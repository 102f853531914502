import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
import optax
from jaxtyping import PyTree

from .._learner import missing_field
from .._types import Params, brief, typechecked
from ..parametrization import UpdateRule, every_leaf
from ._base import AbstractOptimizer, StepContext, cast_like, checked_update
from ._measured_rules import measured_rules

Transformation = optax.GradientTransformation | optax.MultiSteps


class OptaxOptimizer(AbstractOptimizer[optax.OptState]):
    """Any optax transformation as an optimizer of this library.

    `OptaxOptimizer(optax.adam, 1e-3)` keeps the hyperparameters as fields: floats are constants; arrays can be mapped
    over by `jax.vmap`, traced or meta-learned. `OptaxOptimizer(optax.adam(1e-3))` wraps a ready-made transformation.
    Two such optimizers are never equal, so JAX compiles again for each.

    The context's `loss` is passed to optax as the extra argument `value`, and `num_steps` as `num_steps`.

    **Example:**

    ```pycon
    >>> constant = loc.OptaxOptimizer(optax.adam, 1e-3, b1=0.95)
    >>> learned = loc.OptaxOptimizer(optax.adam, jnp.float32(1e-3))
    >>> len(jax.tree.leaves(loc.theta(constant))), len(jax.tree.leaves(loc.theta(learned)))
    (0, 1)
    ```
    """

    transformation: Transformation | Callable[..., Transformation] = eqx.field(static=True)
    hyperparameters: dict[str, Any]
    update_rule: UpdateRule | Callable[[Params], PyTree[UpdateRule]] | None

    def __init__(
        self,
        transformation: Transformation | Callable[..., Transformation],
        *args: Any,
        update_rule: UpdateRule | Callable[[Params], PyTree[UpdateRule]] | None = None,
        **kwargs: Any,
    ):
        """**Arguments:**

        - `transformation`: a function that returns a transformation, such as `optax.adam`, or a transformation.
        - `args`, `kwargs`: the function's arguments.
        - `update_rule`: how the size of its updates depends on the gradient: one
            [`lo_components.parametrization.UpdateRule`][], or a function from parameters to a tree with one for each
            leaf, as for Muon, which leaves vectors to Adam. `None`: measured with gradients of several sizes. Updates
            that are orthogonalized, or proportional to small gradients only (clipped SGD, Adagrad), must be declared.

        Raises `TypeError` if `transformation` is neither, or does not accept these arguments.
        """
        ready = isinstance(transformation, Transformation)
        if ready and (args or kwargs):
            raise TypeError(
                "A ready-made `transformation` takes no arguments: pass `optax.adam` and its arguments instead."
            )
        if not ready and not callable(transformation):
            raise TypeError(
                f"`transformation` must be an optax transformation, or a function that returns one, got "
                f"{brief(transformation)}."
            )
        self.transformation = transformation
        self.hyperparameters = {} if ready else _bound(transformation, args, kwargs)
        self.update_rule = update_rule

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """The declared rule of each leaf of `params`, or else the measured one.

        Raises `ValueError` if no rule is declared and updates look orthogonalized, or are neither proportional to the
        gradient nor independent of its scale.
        """
        if self.update_rule is None:
            return measured_rules(self, params)
        return (
            every_leaf(params, self.update_rule)
            if isinstance(self.update_rule, UpdateRule)
            else self.update_rule(params)
        )

    def made(self) -> optax.GradientTransformationExtraArgs:
        """The optax transformation, with its hyperparameters."""
        made = self.transformation
        if not isinstance(made, Transformation):
            made = made(**self.hyperparameters)
        if isinstance(made, optax.MultiSteps):
            made = made.gradient_transformation()
        return optax.with_extra_args_support(made)

    @typechecked
    def init(self, params: Params) -> optax.OptState:
        return self.made().init(params)

    @checked_update
    def update(
        self, grads: Params, state: optax.OptState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, optax.OptState]:
        extra: dict[str, Any] = {}
        if context.loss is not None:
            extra["value"] = context.loss_array()
        if context.num_steps is not None:
            extra["num_steps"] = context.num_steps_array()
        updates, state = self.made().update(grads, state, params, **extra)
        return cast_like(updates, params), state


def _bound(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name."""
    name = getattr(function, "__name__", repr(function))
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"`{name}` cannot be called with these arguments: {error}.") from None
    found: dict[str, Any] = {}
    for parameter, value in bound.items():
        kind = inspect.signature(function).parameters[parameter].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise TypeError(f"`{name}` takes `{parameter}` by position only; wrap it in a function of named arguments.")
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {parameter: value}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}


def as_optimizer(optimizer: AbstractOptimizer | Transformation, name: str = "optimizer") -> AbstractOptimizer:
    """An optimizer unchanged, or an optax transformation as an [`lo_components.optimizers.OptaxOptimizer`][].

    **Arguments:**

    - `optimizer`: an optimizer of this library, or an optax transformation.
    - `name`: the name of the argument in error messages.

    Raises `TypeError` for anything else, also for theta without the rest of its optimizer.
    """
    if isinstance(optimizer, Transformation):
        return OptaxOptimizer(optimizer)
    way_out = ""
    if isinstance(optimizer, AbstractOptimizer):
        missing = missing_field(optimizer)
        if missing is None:
            return optimizer
        way_out = (
            f" without `{missing}`: it seems to be the result of `theta`; pass the optimizer, or "
            "`equinox.combine(theta, optimizer)`"
        )
    elif callable(optimizer) and not isinstance(optimizer, eqx.Module):
        way_out = "; call it, and pass its result"
    elif hasattr(optimizer, "aggregate"):
        way_out = ", which is an aggregator; aggregators combine the deltas of workers, see `unroll.LocalRound`"
    raise TypeError(f"`{name}` must be an optimizer or an optax transformation, got {brief(optimizer)}{way_out}.")


def as_optax(optimizer: AbstractOptimizer) -> optax.GradientTransformationExtraArgs:
    """An optimizer as an optax transformation, to use alone or inside `optax.chain`.

    **Arguments:**

    - `optimizer`: any optimizer of this library.

    **Returns:** a transformation with the method `update(grads, state, params, *, value=None, num_steps=None,
    value_fn=None)`, where `value` is optax's name for the loss, and `value_fn` for a function from parameters to a
    loss. It ignores extra arguments meant for other transformations, as optax requires.

    To differentiate with respect to the meta-parameters, build the transformation inside the differentiated function.

    Raises `TypeError` if `optimizer` is not an optimizer, and `ValueError` in `update` if `params` is missing.

    **Example:**

    ```pycon
    >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), loc.as_optax(loc.pretrained("mulo")))
    >>> params = {"weight": jnp.ones((4, 3)), "bias": jnp.zeros(4)}
    >>> updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    ```
    """
    optimizer = as_optimizer(optimizer)

    def init(params):
        return optimizer.init(params)

    def update(updates, state, params=None, *, value=None, num_steps=None, value_fn=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "A learned optimizer needs the parameters: call `update(grads, state, params)` with `params`."
            )
        context = StepContext(loss=value, num_steps=num_steps, loss_fn=value_fn)
        return optimizer.update(updates, state, params, context=context)

    return optax.GradientTransformationExtraArgs(init, update)
