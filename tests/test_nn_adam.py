"""NNAdam, beside its recorded trajectories."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, normal_tree

from lo_components import recipes
from lo_components.optimizers import NNAdam

SHAPES = {"w": (3, 2), "u": (3, 2), "v": (2, 3), "b": (4,), "c": (4,), "s": (), "t": (), "empty": (0, 3)}


@pytest.fixture
def optimizer(getkey):
    """One whose network changes the hyperparameters visibly."""
    made = NNAdam(4, learning_rate=0.1, output_scale=0.1, key=getkey())
    return eqx.tree_at(lambda o: o.readout.weight, made, jax.random.normal(getkey(), (4, 4)))


def _run(optimizer, grads, params, steps=3):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
    return updates, state


@pytest.mark.parametrize(("size", "eps"), [(1.0, 1e-3), (1e-5, 1e-8)])
def test_at_first_it_is_adam_without_bias_correction(size, eps, getkey):
    params, grads = (normal_tree({"w": (3, 2)}, getkey()) for _ in range(2))
    grads = {"w": size * grads["w"]}
    updates, state = _run(NNAdam(4, learning_rate=0.02, b1=0.8, b2=0.95, eps=eps, key=getkey()), grads, params, 2)
    g = np.asarray(grads["w"])
    m, v = g * (1 - 0.8**2), g**2 * (1 - 0.95**2)
    np.testing.assert_allclose(updates["w"], -0.02 * (1 + eps) * m / (eps + np.sqrt(v + 1e-10)), rtol=1e-4)
    np.testing.assert_allclose(state.m["w"], m, rtol=1e-4)
    np.testing.assert_allclose(state.v["w"], v, rtol=1e-4)


def test_tensors_of_one_shape_are_updated_as_if_alone(optimizer, getkey):
    params, grads = (normal_tree(SHAPES, getkey()) for _ in range(2))
    updates, state = _run(optimizer, grads, params)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, state)))
    for name in SHAPES:
        alone = _run(optimizer, {name: grads[name]}, {name: params[name]})
        found = (
            {name: updates[name]},
            jax.tree.map(lambda tree, name=name: {name: tree[name]}, state[1:], is_leaf=_dict),
        )
        assert_close(found[0], alone[0], rtol=1e-4)
        assert_close(found[1], tuple(alone[1][1:]), rtol=1e-4, atol=1e-6)


def _dict(x):
    return isinstance(x, dict)


def test_programs_compute_statistics_once_for_all_tensors_of_one_shape(optimizer):
    def logarithms(depth):
        params = {str(i): jnp.ones((3, 2)) for i in range(depth)}
        jaxpr = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params)
        return str(jaxpr).count(" log ")

    assert logarithms(2) == logarithms(7) > 0


def test_hyperparameters_stay_within_their_limits(getkey):
    optimizer = NNAdam(4, output_scale=100.0, key=getkey())
    limits = np.log([[1e-8, 1e3], [np.exp(-10), 1.0], [np.exp(-10), 1.0], [1e-11, 1e4]]) / 10
    params = {"w": jnp.ones((3, 2))}
    for i, sign in enumerate((-1.0, 1.0)):
        moved = eqx.tree_at(lambda o: o.readout.bias, optimizer, jnp.full(4, sign))
        _, state = _run(moved, params, params, 2)
        np.testing.assert_allclose(state.hyperparameters["w"], limits[:, i], rtol=1e-4, atol=1e-6)


def test_hyperparameters_are_pulled_back_to_the_start(getkey):
    optimizer = NNAdam(4, output_scale=0.01, pull=0.25, key=getkey())
    optimizer = eqx.tree_at(lambda o: o.readout.bias, optimizer, jnp.ones(4))
    params = {"w": jnp.ones((3, 2))}
    first, state = optimizer.init(params).hyperparameters["w"], _run(optimizer, params, params, 2)[1]
    np.testing.assert_allclose(state.hyperparameters["w"] - first, 0.0075 + 0.75 * 0.0075, rtol=1e-3)


def test_the_recipe_has_as_many_weights_as_the_original():
    arrays = eqx.filter(recipes.nn_adam(key=jax.random.key(0)), eqx.is_array)
    assert sum(x.size for x in jax.tree.leaves(arrays)) == 6856


def test_a_model_without_arrays_is_left_as_it_is(optimizer):
    updates, state = optimizer.update({}, optimizer.init({}), {})
    assert (updates, state.step) == ({}, 1)
