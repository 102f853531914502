"""The constants of the learner and the estimator of a run, by name."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import _description
from .._learner import Learner, theta
from .._tree import path_name

# Longer sequences of numbers are data.
_LONGEST = 64


def constants(learner: Learner, estimator: Any) -> dict[str, str]:
    """Numbers, names of classes and shapes of arrays, as text.

    Meta-learned arrays are left out. Other arrays are recorded by value if they are scalars, and by shape if not.
    Functions without a public name cannot be compared, so all of them are recorded alike. Modules that hold a mesh only
    place arrays on devices, so the modules that they wrap are recorded in their place.
    """
    found = {}
    for name, part in {"learner": learner, "estimator": estimator}.items():
        meta_learned = (
            {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(theta(part))} if part is learner else ()
        )
        description, arrays, _ = _description.describe(part, before=_simplified, otherwise=_description.in_words)
        found |= {key: str(value) for key, value in _description.constants(description, name)}
        found |= {f"{name}/{key}": _text(array) for key, array in arrays.items() if key not in meta_learned}
    return found


def _simplified(node: Any) -> Any:
    if isinstance(node, list | tuple) and len(node) > _LONGEST:
        return f"{len(node)} entries"
    if isinstance(node, np.generic):
        return node.item()
    while dataclasses.is_dataclass(node):
        values = [getattr(node, field.name, None) for field in dataclasses.fields(node)]
        if not any(isinstance(value, Mesh) for value in values):
            break
        node = next((value for value in values if dataclasses.is_dataclass(value)), None)
    return node


def _text(array: Any) -> str:
    if array.ndim or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return f"{array.dtype}{list(array.shape)}"
    return str(np.asarray(array))
