"""Arguments that are mistaken often, with errors that say what to pass instead."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import optax

from .._learner import missing_field

FunctionT = TypeVar("FunctionT", bound=Callable)


def checked(function: FunctionT) -> FunctionT:
    """Check `learner`, the first argument of `function`, and `optimizer`, if it has one, before all others.

    The function then raises `TypeError` if the learner is a recipe instead of its result, or if the optimizer is no
    optax transformation, and `ValueError` if the learner is theta alone.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        _check_learner(arguments["learner"])
        if arguments.get("optimizer") is not None:
            as_transformation(arguments["optimizer"])
        return function(*args, **kwargs)

    return wrapper  # pyright: ignore[reportReturnType]


def as_transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """A meta-optimizer as an optax transformation that takes extra arguments.

    Raises `TypeError` for anything else than a transformation or `optax.MultiSteps`.
    """
    if isinstance(optimizer, optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(*optimizer.gradient_transformation())
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`optimizer` must be an optax transformation, such as `optax.adam(1e-3)`, got {_kind(optimizer)}."
        )
    return optax.with_extra_args_support(optimizer)


def _check_learner(learner: Any) -> None:
    if isinstance(learner, optax.GradientTransformation | optax.MultiSteps):
        return
    if not isinstance(learner, eqx.Module):
        name = getattr(learner, "__name__", None)
        way_out = f"call it: `{name}(...)`" if callable(learner) and name else "build one with a recipe"
        raise TypeError(f"`learner` must be an optimizer or an aggregator, got {_kind(learner)}; {way_out}.")
    if (missing := missing_field(learner)) is not None:
        raise ValueError(
            f"`learner` has no `{missing}`: it seems to be the result of `theta`, which holds the meta-parameters "
            "alone; pass the learner, or `equinox.combine(theta, learner)`."
        )


def _kind(x: Any) -> str:
    name = getattr(x, "__name__", None)
    return f"the {'class' if isinstance(x, type) else 'function'} `{name}`" if name else f"a {type(x).__name__}"
