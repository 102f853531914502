"""How the size of an optimizer's updates depends on the gradient, by trying it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._tree import concrete, path_name
from .._types import Params
from ..parametrization import PROPORTIONAL, SCALE_FREE, UpdateRule
from ._base import AbstractOptimizer, StepContext

# No gradient (its update is weight decay), below any clipping threshold but far above any epsilon, twice as much, and
# far above any threshold.
_SIZES = (0.0, 1e-3, 2e-3, 1e3)
# The second step, since warm-up may begin at zero, and a later one, since some optimizers begin as others.
_STEPS = (2, 16)
# Replace traced hyperparameters: small, as learning rates, decay and epsilon are, and large, as thresholds may be.
_TRACED = (1e-5, 1e1)
# Values of all parameters.
_PARAMS = (0.0, 3.0)
_WAY_OUT = "declare it: `OptaxOptimizer(..., update_rule=...)` with a rule of `lo_components.parametrization`"


def measured_rules(optimizer: AbstractOptimizer, params: Params) -> PyTree[UpdateRule]:
    """`PROPORTIONAL` for arrays whose updates grow with the gradient, `SCALE_FREE` for those whose updates do not.

    Parameters are replaced by zeros, and by threes, of size at most 2 along each axis. All trials must agree, and
    updates must not depend on the size of the parameters. Arrays whose updates are always zero are frozen, so any rule
    will do.
    """
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        zeros = jax.tree.map(lambda p: jnp.zeros([min(n, 2) for n in np.shape(p)], jnp.float32), params)
        trials = [
            _tried(_concrete(optimizer, traced), jax.tree.map(lambda p, value=value: p + value, zeros))
            for traced in (_TRACED if _is_traced(optimizer) else _TRACED[:1])
            for value in _PARAMS
        ]
    if _is_traced(trials):
        raise ValueError(
            "The update rule of an optax transformation with traced hyperparameters cannot be measured; pass them as "
            "fields, as in `OptaxOptimizer(optax.adam, learning_rate)`, or declare `update_rule`."
        )
    trials = jax.tree.map(np.asarray, trials)
    if jax.tree.leaves(params) and not any(np.any(x) for x in jax.tree.leaves(trials)):
        raise ValueError(
            f"The update rule cannot be measured, because the first updates of all arrays are zero; {_WAY_OUT}."
        )
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: _rule(path_name(path), leaves), *trials)


@eqx.filter_jit
def _try(optimizer: AbstractOptimizer, params: Params) -> PyTree[Array]:
    """The updates of each size of gradient at each of the steps, without those of zero gradients."""

    def run(size: Float[Array, ""]) -> PyTree[Array]:
        # The gradient of a matrix is [[1, 2], [3, 4]], so that an orthogonalized one looks different.
        grads = jax.tree.map(lambda p: size * (1.0 + jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape)), params)

        def step(state, _):
            updates, state = optimizer.update(grads, state, params, context=StepContext(loss=1.0, num_steps=100))
            return state, updates

        _, updates = jax.lax.scan(step, optimizer.init(params), None, max(_STEPS))
        return jax.tree.map(lambda u: u[jnp.asarray(_STEPS) - 1], updates)

    updates = jax.vmap(run)(jnp.asarray(_SIZES, jnp.float32))
    return jax.tree.map(lambda u: u[1:] - u[:1], updates)


def _tried(optimizer: AbstractOptimizer, params: Params) -> PyTree[Array]:
    try:
        return _try(optimizer, params)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"The update rule of the optax transformation cannot be measured ({reason}); {_WAY_OUT}."
        ) from error


def _concrete(optimizer: AbstractOptimizer, value: float) -> AbstractOptimizer:
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype) if isinstance(x, Tracer) else x, optimizer)


def _is_traced(tree: PyTree) -> bool:
    return not concrete(*jax.tree.leaves(tree))


def _rule(name: str, trials: tuple[np.ndarray, ...]) -> UpdateRule:
    """The rule of all trials `[sizes, steps, *shape]`, which alternate between the two values of the parameters."""
    norms = np.stack([np.sqrt(np.sum(np.square(t, dtype=np.float64), axis=tuple(range(2, t.ndim)))) for t in trials])
    # [sizes, trials and steps], without steps at which a schedule has ended.
    columns = np.moveaxis(norms, 1, 0).reshape(norms.shape[1], -1)
    columns = columns[:, columns[0] > 0]
    if not columns.size:
        return SCALE_FREE
    ratios = columns / columns[0]
    sizes = np.asarray(_SIZES[1:])[:, None] / _SIZES[1]
    proportional, scale_free = (np.allclose(ratios, expected, rtol=0.1) for expected in (sizes, np.ones_like(sizes)))
    if not (proportional or scale_free):
        worst = ratios[:, np.argmax(np.max(np.abs(np.log(ratios / ratios[:, :1])), axis=0))]
        found = " or ".join(f"{r[1]:.3g} and {r[2]:.3g}" for r in np.unique(np.stack([ratios[:, 0], worst]), axis=0))
        raise ValueError(
            f"The updates of `{name}` are neither proportional to the gradient nor independent of its scale, at each "
            f"step and for all parameters (2 and 1,000,000 times the gradient multiply them by {found}); {_WAY_OUT}."
        )
    if not np.allclose(norms[0::2], norms[1::2], rtol=0.1):
        raise ValueError(f"The updates of `{name}` depend on the size of the parameters; {_WAY_OUT}.")
    first = trials[0][0, 0]
    if first.shape == (2, 2) and np.linalg.cond(first) < 2:
        raise ValueError(f"The updates of `{name}` look orthogonalized; {_WAY_OUT}, probably `ORTHOGONALIZED`.")
    return PROPORTIONAL if proportional else SCALE_FREE
