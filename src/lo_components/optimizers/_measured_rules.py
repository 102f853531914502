"""Measure how the size of an optimizer's updates depends on the gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._tree import path_name
from .._types import Params
from ..parametrization import PROPORTIONAL, SCALE_FREE, UpdateRule

# Size of the gradients: too small to be clipped, far above any epsilon.
_SIZE = 1e-3
# Replaces traced hyperparameters; small, as learning rates, weight decay and epsilon are.
_TRACED = 1e-5


def measured_rules(optimizer: eqx.Module, params: Params) -> PyTree[UpdateRule]:
    """`PROPORTIONAL` for arrays whose updates double with the gradient, `SCALE_FREE` if they stay the same.

    Parameters are replaced by zeros of size at most 2 along each axis. The second of two steps is measured, since
    warm-up may begin at zero.
    """
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        small = jax.tree.map(lambda p: jnp.zeros([min(n, 2) for n in np.shape(p)], jnp.float32), params)
        concrete = jax.tree.map(
            lambda x: jnp.full(x.shape, _TRACED, x.dtype) if isinstance(x, Tracer) else x, optimizer
        )
        once, twice = (_second_update(concrete, small, size) for size in (_SIZE, 2 * _SIZE))
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((once, twice))):
        raise ValueError(
            "The update rule of an optax transformation with traced hyperparameters cannot be measured; pass them as "
            "fields, as in `OptaxOptimizer(optax.adam, learning_rate)`, or declare `update_rule`."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: _rule(path_name(path), np.asarray(a), np.asarray(b)), once, twice
    )


def _second_update(optimizer: Any, params: Params, size: float) -> Params:
    # The gradient of a matrix is [[1, 2], [3, 4]], far from orthogonal, so orthogonalized updates can be detected.
    grads = jax.tree.map(lambda p: size * (1.0 + jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape)), params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    return optimizer.update(grads, state, params)[0]


def _rule(name: str, once: np.ndarray, twice: np.ndarray) -> UpdateRule:
    way_out = "declare it: `OptaxOptimizer(..., update_rule=...)` with a rule of `lo_components.parametrization`"
    norms = np.linalg.norm(once), np.linalg.norm(twice)
    if once.size and not norms[0] > 0:
        raise ValueError(
            f"The update rule of `{name}` cannot be measured, because its first updates are zero; {way_out}."
        )
    ratio = norms[1] / norms[0] if once.size else 1.0
    if abs(ratio - 2.0) < 0.1:
        return PROPORTIONAL
    if abs(ratio - 1.0) > 0.1:
        raise ValueError(
            f"The updates of `{name}` are neither proportional to the gradient nor independent of its scale (doubling "
            f"it multiplies them by {ratio:.2f}); {way_out}."
        )
    if once.ndim == 2 and once.shape == (2, 2) and np.linalg.cond(once) < 2:
        raise ValueError(f"The updates of `{name}` look orthogonalized; {way_out}, probably `ORTHOGONALIZED`.")
    return SCALE_FREE
