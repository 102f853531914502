"""Private helpers for pytrees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree


def normal_like(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """Independent standard normal draws with the structure, shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten(draws)


def where(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `jnp.where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every element of every inexact leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.asarray(True)


def path_name(path: tuple) -> str:
    """A key path as a readable name: `.layers[0].weight` becomes `layers/0/weight`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
