"""Type aliases and the run-time check that guards public entry points."""

from typing import Any

import numpy as np
from beartype import beartype
from jaxtyping import Array, Float, PyTree, jaxtyped

# Public functions accept NumPy arrays as well as JAX arrays.
FloatArray = Float[Array | np.ndarray, "?*leaf"]

# All arguments annotated `Params` in one signature must agree in structure and leaf shapes.
Params = PyTree[FloatArray, "P"]

# A tree of Python floats or scalar arrays, one per leaf of the parameters.
Scales = PyTree[Any]


def typechecked(fn):
    """Check `fn`'s annotations at each call (under `jit`: at each trace)."""
    return jaxtyped(fn, typechecker=beartype)
