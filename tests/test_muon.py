"""Muon with updates of root mean square 1, and its learned relative."""

import runpy
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lo_components import partition, recipes
from lo_components.optimizers import StepContext
from lo_components.schedules import WarmUpAndDecay

RNG = np.random.default_rng(0)
SHAPES = {"matrix": (6, 4), "kernel": (4, 3, 2, 2), "bias": (5,), "gain": ()}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
GRADS = [{name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(4)]
RESIDUAL = recipes.residual_muon(0.1, warm_up=0.0, key=jax.random.key(0))
CONTROL = recipes.rms_muon(0.1, warm_up=0.0)
both = pytest.mark.parametrize("optimizer", [CONTROL, RESIDUAL], ids=["rms", "residual"])


def _updates(optimizer, factor=1.0, num_steps=10**9):
    state, found = optimizer.init(PARAMS), []
    update = eqx.filter_jit(optimizer.update)
    for grads in GRADS:
        scaled = jax.tree.map(lambda g: jnp.float32(factor) * g, grads)
        updates, state = update(scaled, state, PARAMS, context=StepContext(num_steps=num_steps))
        found.append(updates)
    return found


def test_the_learned_one_begins_as_the_other():
    for found, expected in zip(_updates(RESIDUAL), _updates(CONTROL), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)


@both
def test_updates_have_the_learning_rate_as_root_mean_square_for_gradients_of_any_size(optimizer):
    for factor in (1e-8, 1.0, 1e6):
        for updates in _updates(optimizer, factor):
            for update in jax.tree.leaves(updates):
                np.testing.assert_allclose(np.sqrt(np.mean(np.square(update))), 0.1, rtol=1e-3)


def test_a_kernel_is_a_matrix_of_outputs_and_inputs():
    """The momentum of a kernel and of the matrix with its elements have the same updates."""
    kernel, matrix = ({"w": jnp.asarray(GRADS[0]["kernel"]).reshape(shape)} for shape in ((4, 3, 2, 2), (4, 12)))
    found, expected = (
        CONTROL.update(g, CONTROL.init(g), g, context=StepContext(num_steps=10))[0]["w"] for g in (kernel, matrix)
    )
    np.testing.assert_allclose(found.reshape(4, 12), expected, rtol=1e-6)


def test_flax_kernels_have_their_outputs_last():
    equinox = {"w": jnp.asarray(GRADS[0]["kernel"])}
    flax = {"w": equinox["w"].transpose(2, 3, 1, 0)}
    last = recipes.rms_muon(0.1, warm_up=0.0, axis=-1)
    context = StepContext(num_steps=10)
    expected, _ = CONTROL.update(equinox, CONTROL.init(equinox), equinox, context=context)
    found, _ = last.update(flax, last.init(flax), flax, context=context)
    singular = lambda w: np.linalg.svd(w.reshape(4, -1), compute_uv=False)  # noqa: E731
    np.testing.assert_allclose(singular(found["w"].transpose(3, 2, 0, 1)), singular(expected["w"]), rtol=1e-4)


@both
def test_they_train(optimizer):
    target = jax.tree.map(lambda p: p + 1.0, PARAMS)
    loss = lambda p: sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (p, target)), strict=True))  # noqa: E731

    @eqx.filter_jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, context=StepContext(num_steps=60))
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.05 * loss(PARAMS)


def test_the_controller_scales_each_tensor():
    where = lambda x: x.optimizer.controller.skip.bias  # noqa: E731
    faster = eqx.tree_at(where, RESIDUAL, where(RESIDUAL) + 0.5)
    factor = np.exp(1.5 * np.tanh(0.5 / 1.5))
    for found, expected in zip(_updates(faster), _updates(RESIDUAL), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, factor * y, rtol=1e-4, atol=1e-6), found, expected)


def test_the_learned_correction_changes_the_direction():
    where = lambda x: x.optimizer.pipeline.head.matrices.linear.weight  # noqa: E731
    changed = eqx.tree_at(where, RESIDUAL, where(RESIDUAL).at[-1].set(1.0))
    for found, begin in zip(_updates(changed)[1:], _updates(RESIDUAL)[1:], strict=True):
        assert not np.allclose(found["matrix"], begin["matrix"], atol=1e-3)
        np.testing.assert_array_equal(found["bias"], begin["bias"])


@pytest.mark.parametrize("kept", [0.0, 0.25, 1.0])
def test_the_part_that_is_kept_lies_between_the_initial_and_the_learned_optimizer(kept):
    kept_part = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "residual_muon.py"))["kept_part"]
    start = recipes.residual_muon(0.004, key=jax.random.key(0))
    theta, constants = partition(start)
    learned = eqx.combine(jax.tree.map(lambda x: x + 1.0, theta), constants)
    found = partition(kept_part(start, learned, kept))
    assert eqx.tree_equal(found[1], constants)
    for first, last in zip(jax.tree.leaves(theta), jax.tree.leaves(found[0]), strict=True):
        np.testing.assert_allclose(last, first + kept, rtol=1e-6)


@pytest.mark.parametrize("make", [recipes.rms_muon, partial(recipes.residual_muon, key=jax.random.key(0))])
def test_recipes_of_muon_pass_on_their_schedule(make):
    assert make(0.1, warm_up=0.2, reference_steps=30).schedule == WarmUpAndDecay(0.1, 0.2, 30)
