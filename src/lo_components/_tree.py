"""Private helpers for pytrees."""

import itertools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

BLOCKED_FROM = 2**18  # elements; learned optimizers compute larger tensors in blocks of rows


def normal_like(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """Independent standard normal draws with the structure, shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    # One draw for all leaves: compiling a random draw costs more than everything else here.
    ends = list(itertools.accumulate((x.size for x in leaves), initial=0))
    draws = jax.random.normal(key, (ends[-1],), jnp.float32)
    return treedef.unflatten(
        [draws[i:j].reshape(x.shape).astype(x.dtype) for i, j, x in zip(ends[:-1], ends[1:], leaves, strict=True)]
    )


def where(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `jnp.where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def scaled(factor: Any, x: Any) -> Array:
    """`factor * x`, computed in float32, in the dtype of `x`."""
    x = jnp.asarray(x)
    return (jnp.asarray(factor, jnp.float32) * x.astype(jnp.float32)).astype(x.dtype)


def check_scales(scales: PyTree, params: PyTree) -> None:
    """Refuse scales that do not have one leaf per leaf of the parameters."""
    got, expected = jax.tree.structure(scales), jax.tree.structure(params)
    if got != expected:
        raise ValueError(
            f"`scales` must have one float per leaf of `params`, in the same structure: got {got}, expected {expected}."
        )


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every element of every inexact leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.asarray(True)


def known(*arrays: Any) -> bool:
    """Whether these are numbers that can be checked, rather than traced."""
    return not any(isinstance(x, Tracer) for x in arrays)


def whole(number: Any) -> Int[Array, ""]:
    """A whole number as an int32 array."""
    if isinstance(number, jax.Array) and jnp.issubdtype(number.dtype, jnp.integer):
        return number.astype(jnp.int32)
    try:
        return jnp.asarray(operator.index(number), jnp.int32)
    except TypeError:
        raise TypeError(f"Expected a whole number, got {number!r}.") from None


def path_name(path: tuple) -> str:
    """A key path as a readable name: `.layers[0].weight` becomes `layers/0/weight`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
