"""Put the arrays of a reference implementation into a learner."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

LearnerT = TypeVar("LearnerT", bound=eqx.Module)

# Arrays of a learner and their names in the reference implementation.
Parts = Callable[[Any], tuple[list[str], list[Any]]]


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise ValueError(f"`config` has an unknown key `{unknown[0]}`; expected: {', '.join(sorted(defaults))}.")
    return {**defaults, **config}


def filled(learner: LearnerT, parts: Parts, theta: dict[str, Any]) -> LearnerT:
    """The learner with the arrays in `parts(learner)` replaced by the arrays of `theta` with the names there."""
    names, currents = parts(learner)
    missing, extra = sorted(set(names) - set(theta)), sorted(set(theta) - set(names))
    if missing:
        raise ValueError(f"`theta` lacks the array `{missing[0]}`; it has: {', '.join(sorted(theta)) or 'none'}.")
    if extra:
        raise ValueError(f"`theta` has an unexpected array `{extra[0]}`; expected: {', '.join(names)}.")
    arrays = []
    for name, current in zip(names, currents, strict=True):
        array = jnp.asarray(theta[name])
        if array.shape != current.shape:
            raise ValueError(f"`theta['{name}']` must have shape {current.shape}, got {array.shape}.")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"`theta['{name}']` must be floating point, got {array.dtype}.")
        arrays.append(array.astype(jnp.float32))
    return eqx.tree_at(lambda tree: parts(tree)[1], learner, arrays)


def same_parts(learner: Any, other: Any) -> bool:
    """Whether two learners have the same parts and numbers, and arrays of the same shapes."""

    def facts(tree: Any) -> tuple[Any, list[Any]]:
        leaves = [x.shape if eqx.is_array(x) else x for x in jax.tree.leaves(tree)]
        return jax.tree.structure(tree), leaves

    return facts(learner) == facts(other)


def with_decays(learner: Any) -> tuple[list[str], list[Any]]:
    """The names and the arrays of a learner with three accumulators, whose decay rates are learned."""
    head, accumulators = learner.pipeline.head, learner.pipeline.accumulators
    layers = range(len(head.weights))
    names = [f"nn/~/w{i}" for i in layers] + [f"nn/~/b{i}" for i in layers]
    names += ["momentum_decays", "rms_decays", "adafactor_decays"]
    return names, [*head.weights, *head.biases, *(a.decays.offset for a in accumulators)]
