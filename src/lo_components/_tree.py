"""Private helpers for pytrees."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from . import _learner

BLOCKED_FROM = 2**18  # elements; learned optimizers compute larger tensors in blocks of rows


def normal_like(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """Independent standard normal samples with the structure, shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    # One call for all leaves: compiling a random generator costs more than everything else here.
    ends = list(itertools.accumulate((x.size for x in leaves), initial=0))
    samples = jax.random.normal(key, (ends[-1],), jnp.float32)
    return treedef.unflatten(
        [samples[i:j].reshape(x.shape).astype(x.dtype) for i, j, x in zip(ends[:-1], ends[1:], leaves, strict=True)]
    )


def where(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `jnp.where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def scaled(factor: Any, x: Any) -> Array:
    """`factor * x`, computed in float32, in the dtype of `x`."""
    x = jnp.asarray(x)
    return (jnp.asarray(factor, jnp.float32) * x.astype(jnp.float32)).astype(x.dtype)


def checked_scales(scales: PyTree, params: PyTree) -> PyTree:
    """The scales with every `Constant` replaced by its array.

    Raises `ValueError` unless there is one scale per leaf of `params`.
    """
    leaves = jax.tree.leaves(scales, is_leaf=lambda x: isinstance(x, _learner.Constant))
    if any(map(eqx.is_array, leaves)):
        raise ValueError(
            "`scales` must hold its arrays as `Constant`s, as the constructor makes them; construct it again."
        )
    scales = _learner.values(scales)
    for path, leaf in jax.tree_util.tree_leaves_with_path(scales):
        if not eqx.is_array_like(leaf):
            raise ValueError(
                f"`scales` must have one float per leaf of `params`, but has a value of type {type(leaf).__name__} at "
                f"`{path_name(path)}`; scales come from `parametrization.update_scales(widths, rule)`."
            )
    if problem := difference(scales, params):
        raise ValueError(
            f"`scales` must have one float per leaf of `params`, in the same structure, but {problem}; compute them "
            "with `parametrization.update_scales(widths, rule)` for this model."
        )
    return scales


def difference(got: PyTree, expected: PyTree) -> str | None:
    """How the structure of one tree differs from another one's, in a few words; `None` if it does not."""
    if jax.tree.structure(got) == jax.tree.structure(expected):
        return None
    here, there = (
        [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in (got, expected)
    )
    for path in there:
        if path not in here:
            return f"`{path}` is missing"
    for path in here:
        if path not in there:
            return f"there is no `{path}`"
    return f"it is a {type(got).__name__} with other nodes or static fields"


def check_build(build: Any, example: str) -> None:
    """Raise `TypeError` unless `build` is a function, rather than a model that was built already."""
    is_model = isinstance(build, eqx.Module) and any(map(eqx.is_array, jax.tree.leaves(build)))
    if is_model or not callable(build):
        what = "a model" if is_model else f"a value of type {type(build).__name__}"
        raise TypeError(f"`build` must be a function that returns a model, such as `{example}`, but it is {what}.")


def check_has_arrays(arrays: PyTree, model: Any) -> None:
    """Raise `ValueError` if there is no array in what `build` returned."""
    if not jax.tree.leaves(arrays):
        raise ValueError(
            f"`build` returns a value of type {type(model).__name__} without any floating-point array; it must return "
            "the model, or a pytree of its arrays."
        )


def check_state(state: PyTree, init: Callable[[PyTree], PyTree], params: PyTree) -> None:
    """Raise `ValueError` unless `state` has the structure, shapes and dtypes of `init(params)`."""
    rule = "`state` must come from `init` with parameters like these, or from the previous step"
    expected = eqx.filter_eval_shape(init, params)
    structures = jax.tree.structure(state), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise ValueError(f"{rule}: it has the structure {structures[0]}, expected {structures[1]}.")
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        if isinstance(like, jax.ShapeDtypeStruct):
            found, wanted = ((getattr(x, "dtype", type(x).__name__), jnp.shape(x)) for x in (leaf, like))
            if found != wanted:
                raise ValueError(
                    f"{rule}: at `{path_name(path)}` got {found[0]}{found[1]}, expected {wanted[0]}{wanted[1]}."
                )


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every element of every inexact leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.asarray(True)


def concrete(*arrays: Any) -> bool:
    """Whether no value is traced, so that all can be checked."""
    return not any(isinstance(x, Tracer) for x in arrays)


def whole(number: Any) -> Int[Array, ""]:
    """A whole number as an int32 array. Raises `TypeError` for anything else."""
    if isinstance(number, jax.Array) and jnp.issubdtype(number.dtype, jnp.integer):
        return number.astype(jnp.int32)
    try:
        return jnp.asarray(operator.index(number), jnp.int32)
    except TypeError:
        raise TypeError(f"Expected a whole number, got {number!r}.") from None


def path_name(path: tuple) -> str:
    """A key path as a readable name: `.layers[0].weight` becomes `layers/0/weight`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
