"""Guarded optimizers fall back where they would do worse."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lo_components.optimizers import Guarded, Matrices, Named, OptaxOptimizer, Partitioned, StepContext, as_optax

PARAMS = {"w": jnp.asarray([3.0, -2.0])}


def loss(params):
    return jnp.sum(jnp.square(params["w"]))


GRADS = {"w": 2.0 * PARAMS["w"]}
BAD, GOOD = OptaxOptimizer(optax.sgd, -0.1), OptaxOptimizer(optax.sgd, 0.1)


@pytest.mark.parametrize(("optimizer", "fallback", "falls_back"), [(BAD, GOOD, True), (GOOD, BAD, False)])
def test_the_better_update_is_taken(optimizer, fallback, falls_back):
    guarded = Guarded(optimizer, fallback)
    updates, state = guarded.update(GRADS, guarded.init(PARAMS), PARAMS, context=StepContext(loss_fn=loss))
    np.testing.assert_allclose(updates["w"], -0.1 * GRADS["w"])
    assert bool(state.fell_back) is falls_back


@pytest.mark.parametrize("rate", [jnp.inf, jnp.nan])
def test_a_loss_that_is_not_finite_is_worse(rate):
    guarded = Guarded(OptaxOptimizer(optax.sgd, rate), GOOD)
    _, state = guarded.update(GRADS, guarded.init(PARAMS), PARAMS, context=StepContext(loss_fn=loss))
    assert state.fell_back


def test_the_fallback_is_taken_if_neither_loss_is_finite():
    guarded = Guarded(OptaxOptimizer(optax.sgd, jnp.nan), OptaxOptimizer(optax.sgd, jnp.inf))
    _, state = guarded.update(GRADS, guarded.init(PARAMS), PARAMS, context=StepContext(loss_fn=loss))
    assert state.fell_back


def test_beside_other_optimizers_the_loss_is_that_of_the_whole_model():
    params = {**PARAMS, "frozen": jnp.ones((2, 2))}
    partitioned = Partitioned(GOOD, Guarded(BAD, GOOD), Matrices())
    whole = lambda p: loss(p) + jnp.sum(jnp.square(p["frozen"]))  # noqa: E731
    grads = {**GRADS, "frozen": 2.0 * params["frozen"]}
    updates, state = partitioned.update(grads, partitioned.init(params), params, context=StepContext(loss_fn=whole))
    assert state.rest.fell_back
    np.testing.assert_allclose(updates["w"], -0.1 * GRADS["w"])


def test_paths_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="names `v`, but there are only w"):
        Partitioned(GOOD, BAD, Named(("v",))).init(PARAMS)


def test_optax_passes_the_function_as_value_fn():
    transformation = as_optax(Guarded(BAD, GOOD))
    updates, _ = transformation.update(GRADS, transformation.init(PARAMS), PARAMS, value_fn=loss)
    assert loss(optax.apply_updates(PARAMS, updates)) < loss(PARAMS)


def test_without_the_function_it_says_how_to_pass_it():
    guarded = Guarded(BAD, GOOD)
    with pytest.raises(ValueError, match="value_fn"):
        guarded.update(GRADS, guarded.init(PARAMS), PARAMS)


def test_different_update_rules_are_refused():
    with pytest.raises(ValueError, match="wrap each of them"):
        Guarded(OptaxOptimizer(optax.adam, 0.1), GOOD).update_rules(PARAMS)
