"""Type aliases and the run-time check that guards public entry points."""

import functools
import inspect
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, TypeCheckError, jaxtyped

# Public functions accept NumPy arrays as well as JAX arrays.
FloatArray = Float[Array | np.ndarray, "?*leaf"]

# All arguments annotated `Params` in one signature must agree in structure and leaf shapes.
Params = PyTree[FloatArray, "P"]

# A tree of Python floats or scalar arrays, one per leaf of the parameters.
Scales = PyTree[Any]


def typechecked(fn):
    """Check `fn`'s annotations at each call (under `jit`: at each trace). Errors are one sentence, a `TypeError`."""
    checked = jaxtyped(fn, typechecker=beartype)
    signature = inspect.signature(fn)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as error:
            if f"of {fn.__module__}.{fn.__qualname__}." not in str(error):
                raise  # from a function that this one calls
            reason = _reason(str(error), signature, args, kwargs)
        raise TypeError(f"{reason} (in `{fn.__qualname__}`).")

    return call


def _reason(message: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> str:
    found = re.search(r"typechecking parameter '(\w+)'", message)
    if found is None:
        return "The result does not have the annotated type; " + brief(message, 300)
    name = found[1]
    value = signature.bind(*args, **kwargs).arguments[name]
    annotation = signature.parameters[name].annotation
    if annotation is not Params:
        return f"`{name}` must be {_words(annotation)}, got {brief(value)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not (isinstance(leaf, Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            at = f" at `{path_name(path)}`" if path else ""
            return (
                f"`{name}` must hold floating-point arrays only, but has {brief(leaf)}{at}; leave other leaves out, "
                "for instance by `eqx.filter(model, eqx.is_inexact_array)`"
            )
    return f"`{name}` does not have the structure and the shapes of the other arguments"


def _words(annotation: Any) -> str:
    if annotation is PRNGKeyArray:
        return "a key such as `jax.random.key(0)`"
    return brief(re.sub(r"(jaxtyping|lo_components)\.([a-z_]+\.)*", "", inspect.formatannotation(annotation)), 150)


def path_name(path: tuple) -> str:
    """A key path as a readable name: `.layers[0].weight` becomes `layers/0/weight`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def brief(x: Any, longest: int = 60) -> str:
    """A description of a value for an error message: the shape of an array, or the beginning of its text."""
    if isinstance(x, Array | np.ndarray | np.generic):
        return f"{x.dtype}{list(x.shape)}" if x.ndim else f"{x.dtype} {x}"
    if isinstance(x, eqx.Module):
        return f"a `{type(x).__name__}`"
    text = f"the function `{x.__qualname__}`" if hasattr(x, "__qualname__") else " ".join(str(x).split())
    return text if len(text) <= longest else f"{text[:longest]}..."
