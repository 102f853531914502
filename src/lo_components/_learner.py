"""Learners: which of their arrays are meta-parameters."""

import dataclasses
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from beartype.door import is_bearable
from jaxtyping import Array, PyTree

Learner: TypeAlias = eqx.Module
"""An optimizer or an aggregator."""


class Constant(eqx.Module):
    """An array inside a learner that is not meta-learned: meta-gradients, perturbations and the meta-optimizer skip it.

    **Arguments:**

    - `value`: the array. It can still be mapped over by `jax.vmap`.
    """

    value: Array


def theta(learner: Learner) -> PyTree:
    """The meta-parameters of a learner: its floating-point arrays that are not wrapped as [`lo_components.Constant`][].

    **Arguments:**

    - `learner`: an optimizer or an aggregator.

    **Returns:** the learner with everything else replaced by `None`.
    """
    return partition(learner)[0]


def partition(learner: Learner) -> tuple[PyTree, PyTree]:
    """The meta-parameters of a learner, and the rest. `equinox.combine(theta, rest)` joins them again.

    **Arguments:**

    - `learner`: an optimizer or an aggregator.
    """
    return eqx.partition(learner, eqx.is_inexact_array, is_leaf=_is_constant)


def is_theta_alone(learner: Any) -> bool:
    """Whether a learner lacks its constants: they are `None`, which the annotations of their fields do not allow."""
    return not jax.tree.leaves(partition(learner)[1]) and _lacks_fields(learner)


def _lacks_fields(node: Any) -> bool:
    if not isinstance(node, eqx.Module):
        return isinstance(node, tuple) and any(map(_lacks_fields, node))
    fields: list[tuple[Any, Any]] = [(f.type, getattr(node, f.name, None)) for f in dataclasses.fields(node)]
    return any(
        _lacks_fields(value) if value is not None else kind is not Any and not is_bearable(None, kind)
        for kind, value in fields
    )


def with_constants(tree: PyTree) -> PyTree:
    """The tree with every array wrapped as a `Constant`."""
    return jax.tree.map(lambda x: Constant(jnp.asarray(x)) if eqx.is_array(x) else x, tree, is_leaf=_is_constant)


def values(tree: PyTree) -> PyTree:
    """The tree with every `Constant` replaced by its array."""
    return jax.tree.map(lambda x: x.value if _is_constant(x) else x, tree, is_leaf=_is_constant)


def _is_constant(x: Any) -> bool:
    return isinstance(x, Constant)
