"""Type aliases and the run-time check that guards public entry points."""

from typing import Any

import numpy as np
from beartype import beartype
from jaxtyping import Array, Float, PyTree, jaxtyped

# Entry points take NumPy arrays as well as JAX arrays.
FloatArray = Float[Array | np.ndarray, "?*leaf"]

# Every argument annotated `Params` in one signature must agree in structure and leaf shapes.
Params = PyTree[FloatArray, "P"]

# A tree of Python floats or scalar arrays, one per leaf of the parameters.
Scales = PyTree[Any]


def typechecked(fn):
    """Check `fn`'s annotations whenever it is called (while tracing only, under `jit`)."""
    return jaxtyped(fn, typechecker=beartype)
