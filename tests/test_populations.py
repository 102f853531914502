"""Populations of meta-trainings: `init_meta_state` and `meta_step` under `vmap`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD
from meta_helpers import Noisy

from lo_components.estimators import PES
from lo_components.meta import evaluate, init_meta_state, meta_step
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_members_of_a_population_are_meta_trainings_of_their_own():
    """Members differ in meta-learning rate, standard deviation and seed; each is what it would be alone."""
    unroll = TruncatedUnroll(Noisy(), LogUniformHorizon(4, 8), window=2)
    rates, stds = jnp.asarray([1e-3, 1e-2, 1e-2]), jnp.asarray([0.02, 0.02, 0.1])
    keys = jax.random.split(jax.random.key(0), 3)

    def start(rate, std, key):
        learner = SGD(0.1 + 0.1 * jax.random.uniform(key))
        return init_meta_state(learner, PES(unroll, num_pairs=2, std=std), optax.sgd(rate), key=key)

    def step(state, rate, std):
        return meta_step(state, PES(unroll, num_pairs=2, std=std), optax.sgd(rate))

    def trained(starting, stepping, *hyperparameters):
        state, losses = starting(*hyperparameters), []
        for _ in range(4):
            state, metrics = stepping(state, *hyperparameters[:2])
            losses.append(metrics.meta_loss)
        return state, jnp.stack(losses)

    states, losses = trained(
        eqx.filter_jit(eqx.filter_vmap(start)), eqx.filter_jit(eqx.filter_vmap(step)), rates, stds, keys
    )
    assert losses.shape == (4, 3)
    starting, stepping = eqx.filter_jit(start), eqx.filter_jit(step)
    for i in range(3):
        member = jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, states)
        alone, own_losses = trained(starting, stepping, rates[i], stds[i], keys[i])
        np.testing.assert_allclose(losses[:, i], own_losses, rtol=1e-4)
        rates_of = [x.learner.hyperparameters["learning_rate"] for x in (member, alone)]
        np.testing.assert_allclose(*rates_of, rtol=1e-5)
    # The population is validated in one call, too.
    scores = eqx.filter_vmap(lambda x: evaluate(x, Noisy(), num_steps=5, key=keys[0]).final().mean())(states.learner)
    alone = evaluate(alone.learner, Noisy(), num_steps=5, key=keys[0]).final().mean()
    np.testing.assert_allclose(scores[2], alone, rtol=1e-4)
    assert scores.shape == (3,) and len(set(scores.tolist())) == 3
