"""Task families, and what an unroll does with them and with other meta-losses."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SGD
from meta_helpers import START, Drift, Fragile, Noisy, quadratic_unroll, toy_task

from lo_components.estimators import PES
from lo_components.tasks import (
    LinearRegression,
    NoisyGradient,
    Quadratic,
    RandomRegressions,
    ReducedBatch,
    Reparametrized,
)
from lo_components.unroll import (
    ConstantHorizon,
    FinalLoss,
    LogLoss,
    LogUniformHorizon,
    MeanLoss,
    TelescopedLoss,
    TruncatedUnroll,
)

KEY = jax.random.key(0)


def test_a_random_regression_has_the_spectrum_that_was_asked_for():
    family = RandomRegressions(1000, max_condition=50.0, noise=0.1, batch_size=4)
    solution, spectrum = family.sample(key=KEY)
    assert 1 / 50 <= spectrum.min() < 1 / 45 and 0.9 < spectrum.max() <= 1.0
    assert abs(np.log(np.asarray(spectrum)).mean() + np.log(50) / 2) < 0.15
    assert abs(np.std(solution) - 1.0) < 0.1
    task = family.task((solution, spectrum))
    assert isinstance(task, LinearRegression) and (task.noise, task.batch_size) == (0.1, 4)


def test_reparametrized_weights_are_the_same_function_with_scaled_gradients():
    base = toy_task()
    family = Reparametrized(base, max_scale=5.0)
    sampled = family.sample(key=jax.random.key(3))
    task, scales = family.task(sampled), sampled[1]
    batch = task.batch(key=KEY)
    params, own = task.init(key=KEY), base.init(key=KEY)
    np.testing.assert_allclose(task.loss(params, batch, key=KEY), base.loss(own, batch, key=KEY), rtol=1e-6)
    grads, own_grads = (jax.grad(t.loss)(p, batch, key=KEY) for t, p in ((task, params), (base, own)))
    for grad, own_grad, scale in zip(*map(jax.tree.leaves, (grads, own_grads, scales)), strict=True):
        assert 0.2 <= scale <= 5.0
        np.testing.assert_allclose(grad, scale * own_grad, rtol=1e-4, atol=1e-7)
    assert len(set(map(float, jax.tree.leaves(scales)))) == len(jax.tree.leaves(scales))
    assert task.max_loss == base.max_loss and task.widths == base.widths


def test_a_reduced_batch_repeats_its_first_examples_and_other_splits_are_whole():
    family = ReducedBatch(toy_task(batch_size=8), min_fraction=0.1)
    task = family.task((None, jnp.asarray(0.3)))
    images, labels = task.batch(key=KEY)
    whole = family.base.batch(key=KEY)
    np.testing.assert_array_equal(images, np.asarray(whole[0])[[0, 1, 2, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(labels, np.asarray(whole[1])[[0, 1, 2, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(task.batch(key=KEY, split="test")[0], family.base.batch(key=KEY, split="test")[0])
    _, fractions = jax.vmap(lambda k: family.sample(key=k))(jax.random.split(KEY, 500))
    assert 0.1 <= fractions.min() < 0.11 and 0.95 < fractions.max() <= 1.0


def test_gradient_noise_leaves_losses_as_they_are():
    base = Quadratic(jnp.ones(2000))
    task = NoisyGradient(base).task((None, jnp.asarray(0.5)))
    params = task.init(key=KEY)
    value, grads = jax.value_and_grad(task.loss)(params, None, key=KEY)
    assert value == base.loss(params, None, key=KEY)
    noise = np.asarray(grads) - 1.0
    assert abs(noise.std() - 0.5) < 0.05 and abs(noise.mean()) < 0.05
    other = jax.grad(task.loss)(params, None, key=jax.random.key(1))
    assert np.all(np.asarray(other) != np.asarray(grads))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reparametrized(Noisy(), max_scale=0.5),
        lambda: ReducedBatch(Noisy(), min_fraction=0.0),
        lambda: NoisyGradient(Noisy(), min_std=0.2, max_std=0.1),
        lambda: RandomRegressions(0),
        lambda: RandomRegressions(3, max_condition=0.5),
    ],
)
def test_impossible_families_are_refused(make):
    with pytest.raises(ValueError, match="`(max_scale|min_fraction|min_std|size)`"):
        make()


def test_augmentations_go_into_one_another():
    family = NoisyGradient(ReducedBatch(Reparametrized(RandomRegressions(3, batch_size=8))), min_std=0.5, max_std=0.5)
    task = family.task(family.sample(key=KEY))
    params, batch = task.init(key=KEY), task.batch(key=KEY)
    grads = jax.vmap(lambda k: jax.grad(task.loss)(params, batch, key=k))(jax.random.split(KEY, 500))
    np.testing.assert_allclose(np.std(grads, axis=0), 0.5, rtol=0.15)
    assert len(np.unique(batch[1])) < 8


def test_an_episodes_length_and_its_task_are_independent():
    unroll = TruncatedUnroll(ReducedBatch(Noisy()), LogUniformHorizon(100, 1000), 1)
    learner = Drift(jnp.zeros(3))
    states = jax.vmap(lambda k: unroll.new_episode(learner, key=k))(jax.random.split(KEY, 500))
    correlation = np.corrcoef(np.log(states.episode.horizon), np.log(states.episode.sampled[1]))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(500)


def test_each_episode_of_each_pair_draws_a_task_and_keeps_it():
    unroll = TruncatedUnroll(RandomRegressions(3, batch_size=4), ConstantHorizon(10), 5)
    estimator = PES(unroll, num_pairs=3, std=0.01)
    learner = SGD(jnp.asarray(0.1))
    state = eqx.filter_jit(estimator.init)(learner, key=KEY)
    step = eqx.filter_jit(estimator.estimate)
    changes = 0
    for key in jax.random.split(KEY, 5):
        estimate, after = step(learner, state, key=key)
        before, sampled = (np.asarray(s.inner.episode.sampled[0]) for s in (state, after))
        assert sampled.shape == (3, 3) and len(np.unique(sampled[:, 0])) == 3
        new = np.asarray(state.inner.episode.done)
        np.testing.assert_array_equal(sampled[~new], before[~new])
        assert np.all(sampled[new] != before[new])
        assert np.isfinite(estimate.grad.hyperparameters["learning_rate"])
        changes += new.sum()
        state = after
    assert changes >= 6


# Meta-losses.

VELOCITY = np.array([0.3, 0.1, -0.2], np.float32)


def contributions(meta_loss, *, steps=12, window=4, split=None):
    """The contributions of one episode's windows, and its losses."""
    unroll = dataclasses.replace(quadratic_unroll(steps=steps, window=window), meta_loss=meta_loss, split=split)
    learner = Drift(jnp.asarray(VELOCITY))
    state, found, losses = unroll.new_episode(learner, key=KEY), [], []
    for _ in range(steps // window):
        out = unroll(learner, state, key=KEY)
        found.append(unroll.contribution(out.losses, out.previous_loss, out.state.episode))
        losses += list(out.losses)
        state = out.state
    assert state.episode.done
    times = np.arange(steps) + (split is not None)
    np.testing.assert_allclose(losses, [0.5 * np.sum((START + t * VELOCITY) ** 2) for t in times], rtol=1e-5)
    return np.asarray(found), np.asarray(losses), (unroll, learner, state)


def _log_loss(losses, final, floor):
    logs = np.log(losses.reshape(-1, 4).mean(axis=1) + floor)
    return (1 - final) * logs.mean() + final * logs[-1]


@pytest.mark.parametrize("options", [{"final": -0.1}, {"final": 1.1}, {"floor": 0.0}])
def test_the_weights_of_the_log_loss_are_checked(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        LogLoss(**options)


@pytest.mark.parametrize(
    "meta_loss, of",
    [
        (MeanLoss(), np.mean),
        (FinalLoss(), lambda losses: losses[-1]),
        (TelescopedLoss(), lambda losses: losses[-1] - losses[0]),
        (LogLoss(0.3, 0.5), lambda losses: _log_loss(losses, 0.3, 0.5)),
    ],
)
def test_the_mean_of_the_contributions_is_the_episodes_meta_loss(meta_loss, of):
    found, losses, (unroll, learner, state) = contributions(meta_loss)
    np.testing.assert_allclose(found.mean(), of(losses), rtol=1e-5)
    # The next window begins anew and owes nothing to the last loss of the episode before.
    out = unroll(learner, state, key=KEY)
    again = unroll.contribution(out.losses, out.previous_loss, out.state.episode)
    np.testing.assert_allclose(again, found[0], rtol=1e-5)


def test_on_a_split_the_telescoped_loss_begins_with_the_loss_of_the_initial_parameters():
    found, losses, _ = contributions(TelescopedLoss(), split="train")
    np.testing.assert_allclose(found.mean(), losses[-1] - 0.5 * np.sum(START**2), rtol=1e-5)


def test_an_episode_that_ends_early_ends_with_the_largest_loss():
    unroll = dataclasses.replace(quadratic_unroll(steps=40, window=4, max_loss=7.0), meta_loss=FinalLoss())
    learner = Fragile(jnp.asarray(0.2), limit=0.1)
    state = unroll.new_episode(learner, key=KEY)
    out = unroll(learner, state, key=KEY)
    assert out.state.episode.done and not out.finite
    assert unroll.contribution(out.losses, out.previous_loss, out.state.episode) == 7.0


def test_losses_may_be_taken_on_another_split_after_the_update():
    class Splits(Noisy):
        def batch(self, *, key, split="train", worker=None):
            return jnp.full(3, {"train": 0.0, "outer_valid": 5.0}[split])

        def init(self, *, key):
            return jnp.zeros(3)

        def loss(self, params, batch, *, key):
            return 0.5 * jnp.sum(jnp.square(params - batch))

    def losses(split):
        unroll = TruncatedUnroll(Splits(), ConstantHorizon(10), 5, split=split)
        learner = Drift(jnp.ones(3))
        return np.asarray(unroll(learner, unroll.new_episode(learner, key=KEY), key=KEY).losses)

    steps = np.arange(5)
    np.testing.assert_allclose(losses(None), 1.5 * steps**2, rtol=1e-6)
    np.testing.assert_allclose(losses("train"), 1.5 * (steps + 1) ** 2, rtol=1e-6)
    np.testing.assert_allclose(losses("outer_valid"), 1.5 * (steps + 1 - 5.0) ** 2, rtol=1e-6)
