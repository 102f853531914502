"""Private helpers for pytrees."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from . import _learner
from ._types import brief
from ._types import path_name as path_name

BLOCKED_FROM = 2**18  # elements; learned optimizers compute larger tensors in blocks


def normal_like(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """Independent standard normal samples with the structure, shapes and dtypes of `tree`."""
    # One call for all leaves: compiling a random generator costs more than everything else here. The barrier keeps XLA
    # from compiling it again for every use of every leaf.
    size = sum(x.size for x in jax.tree.leaves(tree))
    return unraveled(jax.lax.optimization_barrier(jax.random.normal(key, (size,), jnp.float32)), tree)


def raveled(tree: PyTree) -> Float[Array, " n"]:
    """All elements of all leaves in one float32 vector.

    Arithmetic on it is one operation for all leaves, which compiles and runs faster than one for each.
    """
    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(tree)])


def unraveled(vector: Float[Array, " n"], like: PyTree) -> PyTree:
    """The inverse of `raveled`, with the structure, shapes and dtypes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = list(itertools.accumulate((x.size for x in leaves), initial=0))
    return treedef.unflatten(
        [vector[i:j].reshape(x.shape).astype(x.dtype) for i, j, x in zip(ends[:-1], ends[1:], leaves, strict=True)]
    )


def where(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `jnp.where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def scaled(factor: Any, x: Any) -> Array:
    """`factor * x`, computed in float32, in the dtype of `x`."""
    x = jnp.asarray(x)
    return (jnp.asarray(factor, jnp.float32) * x.astype(jnp.float32)).astype(x.dtype)


def checked_scales(scales: PyTree, params: PyTree) -> PyTree:
    """The scale of each leaf of `params`, in their structure, with every `Constant` replaced by its array.

    Scales belong to leaves by their paths. Those of parts that `params` leaves out (`None`, or masked by optax) are not
    used.

    Raises `ValueError` unless there is a number for each leaf of `params`, and for nothing else.
    """
    named = {}
    for path, scale in jax.tree_util.tree_leaves_with_path(scales, is_leaf=_is_constant):
        if eqx.is_array(scale):
            raise ValueError(
                "`scales` must hold its arrays as `Constant`s, as the constructor makes them; construct it again."
            )
        scale, name = _learner.values(scale), leaf_name(path)
        if not isinstance(scale, float | int | Array) or jnp.ndim(scale):
            raise ValueError(
                f"`scales` must hold a number for each leaf of `params`: at `{name}` got {brief(scale)}; for widths, "
                "pass `parametrization.update_scales(widths, rules)`."
            )
        named[name] = scale

    def scale(path: tuple, _: Any) -> Any:
        if leaf_name(path) not in named:
            raise ValueError(
                "`scales` must hold a number for each leaf of `params`, but has none for "
                f"`{leaf_name(path) or '(the root)'}`; scale before parts are renamed or joined, for instance outside "
                "of `optax.flatten`."
            )
        return named[leaf_name(path)]

    found = jax.tree_util.tree_map_with_path(scale, params)
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: not jax.tree.leaves(x))
    there = [leaf_name(path) for path, _ in nodes]
    if other := [name for name in named if not any(f"{name}/".startswith(f"{node}/") for node in there)]:
        raise ValueError(
            f"`scales` holds a number for `{other[0]}`, which `params` does not have; compute them from the widths of "
            "the arrays to train."
        )
    return found


def leaf_name(path: tuple) -> str:
    """The path of a leaf. Flax NNX hands over trees of variables, with a key more, and trees of their values."""
    return path_name(path).removesuffix("/value")


def _is_constant(x: Any) -> bool:
    return isinstance(x, _learner.Constant)


def structure_difference(got: PyTree, expected: PyTree) -> str:
    """Where the structures of two trees first differ, in a few words; empty if they do not."""
    if jax.tree.structure(got) == jax.tree.structure(expected):
        return ""
    names = [[path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(x)] for x in (got, expected)]
    for what, some, others in (("lacks", names[1], names[0]), ("also has", names[0], names[1])):
        missing = sorted(set(some) - set(others), key=some.index)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{what} `{missing[0]}`{more}"
    return (
        f"has the same leaves in other containers ({type(got).__name__} instead of {type(expected).__name__}, or below)"
    )


def check_build(build: Any, example: str) -> None:
    """Raise `TypeError` unless `build` is a function, rather than a model that was built already."""
    is_function = not isinstance(build, eqx.Module) or isinstance(build, eqx.Partial)
    is_model = not is_function and any(map(eqx.is_array, jax.tree.leaves(build)))
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
    if words := difference(state, expected):
        raise ValueError(f"{rule}; {words}.")


def difference(got: PyTree, expected: PyTree) -> str:
    """Where the structures, shapes and dtypes of two trees first differ, in a few words; empty if they do not."""
    if words := structure_difference(got, expected):
        return f"it {words}"
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if hasattr(like, "dtype"):
            found, wanted = ((getattr(x, "dtype", type(x).__name__), jnp.shape(x)) for x in (leaf, like))
            if found != wanted:
                return f"at `{path_name(path)}` got {found[0]}{found[1]}, expected {wanted[0]}{wanted[1]}"
    return ""


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
