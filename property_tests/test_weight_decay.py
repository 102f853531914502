"""Decoupled weight decay inside and around muP's update scales: the two conventions of muAdamW."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from networks import shape_of_model
from strategies import log_floats, seeds
from test_doubled_units import arrays_of, sampled

from lo_components.nn import declared_widths
from lo_components.optimizers import Decayed, OptaxOptimizer, Scaled
from lo_components.parametrization import SCALE_FREE, MuP

SGD = functools.partial(OptaxOptimizer, optax.sgd)
rates = log_floats(1e-4, 1e-1)
MODEL = shape_of_model("mlp", 32, MuP(), 8)
SCALES = MuP(hidden_mult=2.0).update_scales(declared_widths(MODEL), SCALE_FREE)


def shrinkage(optimizer, params):
    """The fraction of each element that a step with zero gradient removes, one array per parameter."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    updates, params = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (updates, params))
    return [-u / p for u, p in zip(updates, params, strict=True)]


def assert_shrinks(optimizer, params, expected):
    """Check each element against its array's expected fraction; a mean would depend on the order of summation."""
    for actual, fraction in zip(shrinkage(optimizer, params), expected, strict=True):
        np.testing.assert_allclose(actual, np.full(actual.shape, fraction), rtol=1e-5)


@settings(max_examples=3)
@given(seeds, rates)
def test_decay_inside_the_scales_shrinks_with_them_and_outside_it_does_not(seed, rate):
    params = sampled(arrays_of(MODEL), np.random.default_rng(seed))
    scales = jax.tree.leaves(SCALES)
    assert set(scales) == {0.5, 1.0}
    scaled_decay = Scaled(Decayed(SGD(1.0), rate), SCALES)
    assert_shrinks(scaled_decay, params, np.multiply(rate, scales))
    same_decay = Decayed(Scaled(SGD(1.0), SCALES), rate)
    assert_shrinks(same_decay, params, [rate] * len(scales))


@settings(max_examples=3)
@given(seeds, rates)
def test_vectors_are_exempt_where_asked(seed, rate):
    params = sampled(arrays_of(MODEL), np.random.default_rng(seed))
    expected = [rate if x.ndim == 2 else 0.0 for x in jax.tree.leaves(params)]
    assert_shrinks(Decayed(SGD(1.0), rate, min_ndim=2), params, expected)


@settings(max_examples=3)
@given(seeds, rates, log_floats(1e-3, 1.0))
def test_decay_leaves_the_rest_of_the_update_alone(seed, rate, learning_rate):
    rng = np.random.default_rng(seed)
    params, grads = sampled(arrays_of(MODEL), rng), sampled(arrays_of(MODEL), rng)
    for plain, decayed, factors in (
        (Scaled(SGD(learning_rate), SCALES), Decayed(Scaled(SGD(learning_rate), SCALES), rate), [1.0] * 6),
        (
            Scaled(SGD(learning_rate), SCALES),
            Scaled(Decayed(SGD(learning_rate), rate), SCALES),
            jax.tree.leaves(SCALES),
        ),
    ):
        a, b = (o.update(grads, o.init(params), params)[0] for o in (plain, decayed))
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), jax.tree.leaves(params), factors, strict=True)
        for without, with_decay, param, factor in leaves:
            np.testing.assert_allclose(with_decay, without - rate * factor * param, rtol=1e-4, atol=1e-6)
