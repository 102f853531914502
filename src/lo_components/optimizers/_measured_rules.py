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

# Gradients below any clipping threshold but far above any epsilon, twice as large, and far above any threshold.
_SIZES = (1e-3, 2e-3, 1e3)
# Replaces traced hyperparameters; small, as learning rates, weight decay and epsilon are.
_TRACED = 1e-5


def measured_rules(optimizer: eqx.Module, params: Params) -> PyTree[UpdateRule]:
    """`PROPORTIONAL` for arrays whose updates grow with the gradient, `SCALE_FREE` for those whose updates do not.

    Parameters are replaced by zeros of size at most 2 along each axis. The second of two steps is measured, since
    warm-up may begin at zero.
    """
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        small = jax.tree.map(lambda p: jnp.zeros([min(n, 2) for n in np.shape(p)], jnp.float32), params)
        concrete = jax.tree.map(
            lambda x: jnp.full(x.shape, _TRACED, x.dtype) if isinstance(x, Tracer) else x, optimizer
        )
        updates = [_second_update(concrete, small, size) for size in _SIZES]
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(updates)):
        raise ValueError(
            "The update rule of an optax transformation with traced hyperparameters cannot be measured; pass them as "
            "fields, as in `OptaxOptimizer(optax.adam, learning_rate)`, or declare `update_rule`."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: _rule(path_name(path), *map(np.asarray, leaves)), *updates
    )


def _second_update(optimizer: Any, params: Params, size: float) -> Params:
    # The gradient of a matrix is [[1, 2], [3, 4]], far from orthogonal, so orthogonalized updates can be detected.
    grads = jax.tree.map(lambda p: size * (1.0 + jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape)), params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    return optimizer.update(grads, state, params)[0]


def _rule(name: str, *updates: np.ndarray) -> UpdateRule:
    way_out = "declare it: `OptaxOptimizer(..., update_rule=...)` with a rule of `lo_components.parametrization`"
    first = updates[0]
    if not first.size:
        return SCALE_FREE
    norms = [float(np.linalg.norm(u)) for u in updates]
    if not norms[0] > 0:
        raise ValueError(
            f"The update rule of `{name}` cannot be measured, because its first updates are zero; {way_out}."
        )
    if np.allclose(norms, np.multiply(norms[0], _SIZES) / _SIZES[0], rtol=0.1):
        return PROPORTIONAL
    if not np.allclose(norms, norms[0], rtol=0.1):
        raise ValueError(
            f"The updates of `{name}` are neither proportional to the gradient nor independent of its scale (2 and "
            f"1,000,000 times the gradient multiply them by {norms[1] / norms[0]:.3g} and {norms[2] / norms[0]:.3g}); "
            f"{way_out}."
        )
    if first.shape == (2, 2) and np.linalg.cond(first) < 2:
        raise ValueError(f"The updates of `{name}` look orthogonalized; {way_out}, probably `ORTHOGONALIZED`.")
    return SCALE_FREE
