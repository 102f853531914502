"""The LSTM optimizer of Andrychowicz et al., beside its recorded trajectories."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, load_golden, normal_tree, view_of

from lo_components import features as ft
from lo_components import interop, recipes
from lo_components.accumulators import RecurrentNetwork


def test_log_and_sign_agree_with_numpy():
    grad = np.array([0.0, 1e-9, 6e-5, -1e-3, 0.5, -1e4], np.float32)
    for k in (5.0, 10):
        (channels,) = ft.LogAndSign(k)(view_of(grad))
        log = np.maximum(np.log(np.abs(grad) + np.finfo(np.float32).eps) / k, -1.0)
        sign = np.clip(grad * np.exp(k), -1.0, 1.0)
        np.testing.assert_allclose(channels.values, np.stack([log, sign]), rtol=1e-5)


def test_it_has_as_many_weights_as_in_the_paper_and_80_numbers_of_state_for_each_parameter():
    optimizer = recipes.l2l_lstm(key=jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(eqx.filter(optimizer, eqx.is_array))) == 5141
    state = optimizer.init({"w": jnp.zeros((3, 2)), "b": jnp.zeros(())})
    assert sum(x.size for x in jax.tree.leaves(state.accumulators)) == 80 * 7


def test_each_parameter_is_updated_as_if_alone(getkey):
    optimizer = recipes.l2l_lstm(sizes=(4, 3), key=getkey())
    params, grads = (normal_tree({"w": (3, 2), "b": (5,), "short": (2,)}, getkey()) for _ in range(2))
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    updates, _ = optimizer.update(grads, state, params)
    alone = {"x": jnp.concatenate([jnp.ravel(grads[k]) for k in ("w", "b", "short")])}
    expected, state = optimizer.update(alone, optimizer.init(alone), alone)
    expected, _ = optimizer.update(alone, state, alone)
    assert_close(jnp.concatenate([jnp.ravel(updates[k]) for k in ("w", "b", "short")]), expected["x"], rtol=1e-5)


def test_without_preprocessing_it_sees_the_gradient(getkey):
    theta = {k: v for k, v in load_golden("l2l_lstm_default")["theta"].items() if k != "lstm_1/w_gates"}
    theta["lstm_1/w_gates"] = np.zeros((21, 80), np.float32)
    learner = interop.from_reference("l2l_lstm", theta, {"preprocess": "identity"})
    assert learner.pipeline.accumulators[0].inputs == ft.Gradient()
    assert learner.pipeline.step_rule.step_mult == -0.01
    with pytest.raises(ValueError, match="`preprocess` must be one of LogAndSign, identity, got 'Clamp'"):
        interop.from_reference("l2l_lstm", theta, {"preprocess": "Clamp"})


def test_wrong_networks_are_refused():
    with pytest.raises(ValueError, match="`sizes` must have one entry"):
        RecurrentNetwork(ft.Gradient(), (), key=jax.random.key(0))
    with pytest.raises(ValueError, match="`inputs` must not require statistics"):
        RecurrentNetwork(ft.Momenta(), (2,), key=jax.random.key(0))
