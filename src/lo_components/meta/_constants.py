"""What a run is made with and does not learn: the constants of its learner and its estimator, by name."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

# A longer sequence of numbers is data.
_LONGEST = 64


def constants(learner: Any, estimator: Any) -> dict[str, str]:
    """Numbers, names of classes and shapes of arrays, as text.

    Arrays of the learner are learned, so they are left out; of the estimator's, scalars count by their value and others
    by their shape. Functions cannot be compared, so one is like another. A module that holds a mesh only says where
    arrays lie: what it wraps stands in its place.
    """
    found = {name: node for name, node in _walk("learner", learner) if not _is_array(node)}
    return {name: _text(node) for name, node in [*found.items(), *_walk("estimator", estimator)]}


def _walk(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Arrays and what is already a text, by name."""
    if _is_array(node):
        yield name, node
    elif node is None or isinstance(node, bool | int | float | complex | str):
        yield name, str(node)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = {field.name: getattr(node, field.name, None) for field in dataclasses.fields(node)}
        if any(isinstance(value, Mesh) for value in fields.values()):
            for value in fields.values():
                if dataclasses.is_dataclass(value):
                    yield from _walk(name, value)
            return
        yield name, type(node).__name__
        for field, value in fields.items():
            yield from _walk(f"{name}/{field}", value)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(f"{name}/{key}", value)
    elif isinstance(node, list | tuple):
        if len(node) > _LONGEST:
            yield name, f"{len(node)} entries"
        else:
            for i, value in enumerate(node):
                yield from _walk(f"{name}/{i}", value)
    elif callable(node):
        yield name, "a function"


def _is_array(node: Any) -> bool:
    return isinstance(node, jax.Array | np.ndarray | np.generic)


def _text(node: Any) -> str:
    if not _is_array(node):
        return node
    if node.ndim or jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        return f"{node.dtype}{list(node.shape)}"
    return str(np.asarray(node))
