"""What every accumulator must do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, view_of

from lo_components import accumulators as acc
from lo_components import features as ft

TABLE = [
    acc.Momentum((0.5, 0.9), learnable=True),
    acc.SquaredMomentum((0.5,)),
    acc.FactoredSquares((0.5, 0.9)),
    acc.FactoredSquares((0.5, 0.9), learnable=True),
    acc.RecurrentNetwork(ft.LogAndSign(), (3, 2), key=jax.random.key(0)),
]
DECAYING = [a for a in TABLE if hasattr(a, "decays")]
SHAPES = [(4,), (2, 3), (2, 3, 3)]

every_accumulator = pytest.mark.parametrize("accumulator", TABLE, ids=lambda a: type(a).__name__)


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@eqx.filter_jit
def _step(accumulator, grad, state):
    state = accumulator.update(view_of(grad), state)
    return state, accumulator.read(state)


def test_the_table_holds_every_accumulator(concrete_classes):
    assert {type(a) for a in TABLE} == concrete_classes(acc, acc.AbstractAccumulator)


@pytest.mark.parametrize("shape", SHAPES)
@every_accumulator
def test_states_are_stable_float32_trees_and_statistics_broadcast_against_the_tensor(accumulator, shape, getkey):
    state = accumulator.init(jnp.ones(shape))
    assert not any(jnp.any(x) for x in jax.tree.leaves(state))
    new, stat = _step(accumulator, jax.random.normal(getkey(), shape), state)
    assert _describe(new) == _describe(state)
    assert {x.dtype for x in jax.tree.leaves((new, stat))} == {jnp.dtype("float32")}
    assert type(stat) is accumulator.produces
    for x in jax.tree.leaves(stat):
        assert x.shape[0] == (len(accumulator.decays) if accumulator in DECAYING else accumulator.layers[-1].size)
        assert jnp.broadcast_shapes(x.shape[1:], shape) == shape
        assert x.ndim == 1 + len(shape)


@every_accumulator
def test_the_state_has_the_same_fields_for_tensors_of_every_shape(accumulator):
    structures = {jax.tree.structure(accumulator.init(jnp.ones(shape))) for shape in [(1,), *SHAPES]}
    assert len(structures) == 1


@every_accumulator
def test_the_initial_state_does_not_depend_on_the_parameters(accumulator):
    assert eqx.tree_equal(accumulator.init(jnp.zeros((2, 3))), accumulator.init(jnp.full((2, 3), 7.0)))


@every_accumulator
def test_jit_equals_eager(accumulator, getkey):
    grad = jax.random.normal(getkey(), (2, 3))
    state = accumulator.update(view_of(grad), accumulator.init(grad))
    assert_close(_step(accumulator, grad, accumulator.init(grad)), (state, accumulator.read(state)), rtol=1e-5)


@pytest.mark.parametrize("accumulator", DECAYING, ids=lambda a: type(a).__name__)
def test_a_constant_gradient_is_remembered_up_to_the_decay(accumulator):
    """From zero, n steps of the same gradient reach the share 1 - b^n of its stationary state."""
    grad, state = jnp.full((2, 3), 2.0), accumulator.init(jnp.zeros((2, 3)))
    stationary = jax.tree.map(lambda x: x / (1 - accumulator.decays(2)), accumulator.update(view_of(grad), state))
    for _ in range(3):
        state, _ = _step(accumulator, grad, state)
    assert_close(state, jax.tree.map(lambda x: x * (1 - accumulator.decays(2) ** 3), stationary), rtol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@every_accumulator
def test_empty_tensors_have_states(accumulator, shape):
    state = accumulator.init(jnp.zeros(shape))
    assert _describe(state) == _describe(accumulator.init(jnp.ones(shape)))
    assert not any(jnp.any(x) for x in jax.tree.leaves(state))


@every_accumulator
def test_zero_gradients_give_finite_statistics_with_finite_derivatives(accumulator):
    grad = jnp.zeros((2, 3))

    def total(accumulator, grad):
        stat = accumulator.read(accumulator.update(view_of(grad), accumulator.init(grad)))
        return sum(jnp.sum(x) for x in jax.tree.leaves(stat))

    theta, static = eqx.partition(accumulator, eqx.is_inexact_array)
    value, derivatives = jax.value_and_grad(lambda t, g: total(eqx.combine(t, static), g), (0, 1))(theta, grad)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((value, derivatives)))
