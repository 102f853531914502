"""Symmetries of accumulators and of learned optimizers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from strategies import gradient_scales, seeds

from lo_components import recipes
from lo_components.accumulators import FactoredSquares, Momentum, SquaredMomentum, TensorView

SHAPE = (4, 6)
OPTIMIZER = recipes.small_fc_lopt(momentum_decays=(0.9,), factored_decays=(0.9,), key=jax.random.key(0))


def _draw(seed, steps=2):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(steps)], rng


@eqx.filter_jit
def _remember(accumulator, grads):
    state = accumulator.init(grads[0])
    for grad in grads:
        view = TensorView(jnp.zeros_like(grad), grad, (), jnp.asarray(0, jnp.int32))
        state = accumulator.update(view, state)
    return state, accumulator.read(state)


@jax.jit
def _two_updates(param, grads):
    state, updates = OPTIMIZER.init(param), []
    for grad in grads:
        update, state = OPTIMIZER.update(grad, state, param)
        updates.append(update)
    return jnp.stack(updates)


@given(seeds, gradient_scales)
def test_momenta_are_linear_and_squares_quadratic_in_the_gradients(seed, scale):
    grads, _ = _draw(seed)
    scaled = [jnp.float32(scale) * g for g in grads]
    for accumulator, power in [(Momentum((0.5, 0.9)), 1), (SquaredMomentum((0.5,)), 2), (FactoredSquares((0.5,)), 2)]:
        once, _ = _remember(accumulator, grads)
        other, _ = _remember(accumulator, scaled)
        for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a * scale**power, rtol=1e-5, atol=1e-6 * scale**power)


@given(seeds, gradient_scales.filter(lambda scale: scale >= 1e-2))
def test_preconditioning_cancels_the_scale_of_gradients_well_above_the_guards(seed, scale):
    grads, _ = _draw(seed)
    _, once = _remember(FactoredSquares((0.5,)), grads)
    _, other = _remember(FactoredSquares((0.5,)), [jnp.float32(scale) * g for g in grads])
    # The epsilon of 1e-9, added to a mean square of 1e-4, changes its root by 5e-6.
    np.testing.assert_allclose(
        other.row_factor * other.col_factor * scale, once.row_factor * once.col_factor, rtol=5e-5
    )


@given(seeds)
def test_permuting_rows_and_columns_permutes_the_update(seed):
    grads, rng = _draw(seed, steps=3)
    param, *grads = grads
    rows, cols = rng.permutation(SHAPE[0]), rng.permutation(SHAPE[1])
    permute = lambda x: x[rows][:, cols]  # noqa: E731
    updates = _two_updates(param, grads)
    permuted = _two_updates(permute(param), [permute(g) for g in grads])
    np.testing.assert_allclose(permuted, updates[:, rows][:, :, cols], rtol=1e-3, atol=1e-7)
