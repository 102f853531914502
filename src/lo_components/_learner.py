"""Learners: which of their arrays are meta-parameters."""

import dataclasses
from collections.abc import Iterator
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

    **Example:**

    ```pycon
    >>> learner = loc.recipes.small_fc_lopt(key=jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(loc.theta(learner)))
    197
    ```
    """
    return partition(learner)[0]


def partition(learner: Learner) -> tuple[PyTree, PyTree]:
    """The meta-parameters of a learner, and the rest. `equinox.combine(theta, rest)` joins them again.

    **Arguments:**

    - `learner`: an optimizer or an aggregator.
    """
    return eqx.partition(learner, eqx.is_inexact_array, is_leaf=_is_constant)


def missing_field(learner: Any) -> str | None:
    """The path of a field that is `None` against its annotation, if the learner lacks all constants, as theta does."""
    return None if jax.tree.leaves(partition(learner)[1]) else next(_missing(learner, ""), None)


def _missing(node: Any, name: str) -> Iterator[str]:
    children: Any = ()
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            value, path = getattr(node, field.name, None), f"{name}/{field.name}".lstrip("/")
            empty = value is None or (isinstance(value, tuple | list) and any(x is None for x in value))
            # Annotations may be strings, and a default may contradict its annotation.
            if empty and value != field.default and not (isinstance(field.type, str) or is_bearable(value, field.type)):
                yield path
            yield from _missing(value, path)
    elif isinstance(node, tuple | list):
        children = enumerate(node)
    elif isinstance(node, dict):
        children = node.items()
    for key, value in children:
        yield from _missing(value, f"{name}/{key}")


def with_constants(tree: PyTree) -> PyTree:
    """The tree with every array wrapped as a `Constant`."""
    return jax.tree.map(lambda x: Constant(jnp.asarray(x)) if eqx.is_array(x) else x, tree, is_leaf=_is_constant)


def values(tree: PyTree) -> PyTree:
    """The tree with every `Constant` replaced by its array."""
    return jax.tree.map(lambda x: x.value if _is_constant(x) else x, tree, is_leaf=_is_constant)


def _is_constant(x: Any) -> bool:
    return isinstance(x, Constant)
