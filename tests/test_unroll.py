import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD
from meta_helpers import START, Drift, Noisy, quadratic_unroll

from lo_components import nn
from lo_components.aggregators import Mean
from lo_components.data import digits
from lo_components.optimizers import OptaxOptimizer, Scaled, StepContext
from lo_components.parametrization import SP, MuP, WidthSpec
from lo_components.tasks import ImageClassification, Quadratic
from lo_components.unroll import (
    AbstractHorizon,
    ConstantHorizon,
    GradientStep,
    HorizonSchedule,
    LogUniformHorizon,
    TruncatedUnroll,
    scaled_for,
    scaled_for_model,
)

VELOCITY = np.array([0.3, 0.1, -0.2], np.float32)


def drift_losses(first, last):
    """Losses of steps `first` to `last - 1` of an episode trained with `Drift(VELOCITY)`."""
    return np.array([0.5 * np.sum((START + t * VELOCITY) ** 2) for t in range(first, last)], np.float32)


def sample_horizons(horizon, window, count=4000, *, after=0):
    keys, so_far = jax.random.split(jax.random.key(0), count), jnp.asarray(after)
    return np.asarray(jax.jit(jax.vmap(lambda key: horizon.sample(window, windows_so_far=so_far, key=key)))(keys))


@pytest.mark.parametrize(
    ("low", "high", "window", "least", "most"),
    [(100, 1000, 50, 100, 1000), (70, 400, 50, 100, 400), (3, 19, 4, 4, 16), (1, 7, 1, 1, 7), (60, 60, 50, 100, 100)],
)
def test_log_uniform_horizons_are_whole_windows_within_bounds(low, high, window, least, most):
    horizons = sample_horizons(LogUniformHorizon(low, high), window)
    assert horizons.dtype == np.int32
    assert set(horizons) == set(range(least, most + 1, window))


def test_horizons_are_log_uniform():
    horizons = np.sort(sample_horizons(LogUniformHorizon(100, 1000), 1))
    expected = np.log(horizons / 100) / np.log(10)
    empirical = (np.arange(len(horizons)) + 0.5) / len(horizons)
    assert np.max(np.abs(expected - empirical)) < 1.63 / math.sqrt(len(horizons))  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize(("steps", "window", "expected"), [(10, 5, 10), (10, 4, 12), (1, 5, 5)])
def test_constant_horizon_is_rounded_up_to_whole_windows(steps, window, expected):
    assert set(sample_horizons(ConstantHorizon(steps), window, 2)) == {expected}


@pytest.mark.parametrize("bounds", [(0, 10), (10, 9), (-5, 5)])
def test_impossible_log_uniform_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="1 <= min_steps <= max_steps"):
        LogUniformHorizon(*bounds)


def test_a_number_of_steps_is_a_constant_horizon():
    for steps in (12, np.int64(12), jnp.asarray(12)):
        unroll = TruncatedUnroll(Quadratic(jnp.asarray(START)), steps, 5)
        assert isinstance(unroll.horizon, ConstantHorizon) and unroll.horizon.steps == 12
        assert unroll.new_episode(SGD(0.1), key=jax.random.key(0)).episode.horizon == 15


@pytest.mark.parametrize("horizon", [2.5, "400", None, jnp.asarray(10.0)])
def test_what_is_no_horizon_is_refused(horizon):
    with pytest.raises(TypeError, match="`horizon` must be a number of steps or a horizon such as .* got"):
        TruncatedUnroll(Quadratic(jnp.asarray(START)), horizon, 5)


def test_fractional_steps_are_refused():
    with pytest.raises(TypeError, match="Expected a whole number, got 2.5"):
        ConstantHorizon(2.5)


def test_a_schedule_of_horizons_depends_on_the_windows_so_far():
    horizon = HorizonSchedule((0, LogUniformHorizon(2, 8)), (10, 20), (15, 33))
    for after, expected in ((0, {2, 4, 6, 8}), (9, {2, 4, 6, 8}), (10, {20}), (14, {20}), (15, {34}), (10**6, {34})):
        assert set(sample_horizons(horizon, 2, 200, after=after)) == expected


@pytest.mark.parametrize("stages", [(), ((5, 10),), ((0, 10), (0, 20)), ((0, 10), (9, 20), (8, 30))])
def test_stages_that_do_not_begin_at_zero_and_increase_are_refused(stages):
    with pytest.raises(ValueError, match="`stages` must begin at 0 and increase, got"):
        HorizonSchedule(*stages)


@pytest.mark.parametrize("stages", [((0, 10, 20),), (10,), (((0, 10), (5, 20)),)])
def test_stages_that_are_no_pairs_are_refused(stages):
    with pytest.raises(TypeError, match=r"Each of `stages` must be a pair `\(windows, horizon\)`"):
        HorizonSchedule(*stages)


class Given(AbstractHorizon):
    """Does not round."""

    steps: int

    def sample(self, window, *, windows_so_far, key):
        return jnp.asarray(self.steps, jnp.int32)


@pytest.mark.parametrize(("steps", "expected"), [(7, 10), (10, 10), (1, 5), (0, 5), (-3, 5)])
def test_the_unroll_rounds_any_horizon_up_to_whole_windows(steps, expected):
    unroll = TruncatedUnroll(Quadratic(jnp.asarray(START)), Given(steps), 5)
    state = fresh(unroll, SGD(0.1))
    assert state.episode.horizon == expected
    outputs = run_windows(unroll, SGD(0.1), state, 2)
    assert [bool(out.state.episode.done) for out in outputs] == [expected == 5, True]
    # Both windows count, as they do with a horizon that is a multiple.
    contributions = [unroll.contribution(out.losses, out.previous_loss, out.state.episode) for out in outputs]
    plain = TruncatedUnroll(Quadratic(jnp.asarray(START)), expected, 5)
    same = run_windows(plain, SGD(0.1), fresh(plain, SGD(0.1)), 2)
    assert contributions == [plain.contribution(out.losses, out.previous_loss, out.state.episode) for out in same]


def test_a_particle_counts_its_windows_over_all_episodes():
    unroll = TruncatedUnroll(Noisy(), HorizonSchedule((0, 4), (3, 6)), 2)
    outputs = run_windows(unroll, SGD(0.1), fresh(unroll, SGD(0.1)), 8)
    found = [out.state.episode for out in outputs]
    assert [int(e.earlier_windows + e.windows) for e in found] == list(range(1, 9))
    assert [int(e.horizon) for e in found] == [4, 4, 4, 4, 6, 6, 6, 6]  # the second episode begins after 2 windows


@pytest.mark.parametrize("steps", [0, -5])
def test_zero_steps_and_zero_windows_are_refused(steps):
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        ConstantHorizon(steps)
    with pytest.raises(ValueError, match=f"`horizon` must be at least 1, got {steps}"):
        TruncatedUnroll(Quadratic(jnp.asarray(START)), steps, 5)
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        quadratic_unroll(steps=10, window=0)


def test_first_episodes_are_staggered_by_whole_windows_and_the_learner_starts_at_zero():
    unroll = quadratic_unroll(steps=20, window=5)
    keys = jax.random.split(jax.random.key(0), 2000)
    state = jax.jit(jax.vmap(lambda key: unroll.init(Drift(jnp.asarray(VELOCITY)), key=key)))(keys)
    steps, counts = np.unique(np.asarray(state.episode.step), return_counts=True)
    assert steps.tolist() == [0, 5, 10, 15]
    assert np.all(np.abs(counts - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75))
    assert not np.any(state.train.learner_state) and not np.any(state.episode.done)
    np.testing.assert_array_equal(state.episode.horizon, 20)
    np.testing.assert_array_equal(state.train.params, np.tile(START, (2000, 1)))


def test_staggered_starts_stay_below_their_own_horizon():
    unroll = TruncatedUnroll(Quadratic(jnp.asarray(START)), LogUniformHorizon(5, 40), 5)
    keys = jax.random.split(jax.random.key(1), 500)
    state = jax.jit(jax.vmap(lambda key: unroll.init(SGD(0.1), key=key)))(keys)
    assert np.all(np.asarray(state.episode.step) < np.asarray(state.episode.horizon))
    assert not np.any(np.asarray(state.episode.step) % 5)
    assert np.any(np.asarray(state.episode.step) >= 30)


def run_windows(unroll, learner, state, count):
    call = eqx.filter_jit(lambda state, key: unroll(learner, state, key=key))
    outputs = []
    for key in jax.random.split(jax.random.key(3), count):
        outputs.append(call(state, key))
        state = outputs[-1].state
    return outputs


def fresh(unroll, learner):
    """A state whose episode has spent no step."""
    state = unroll.init(learner, key=jax.random.key(0))
    return eqx.tree_at(lambda s: s.episode.step, state, jnp.zeros_like(state.episode.step))


def test_losses_are_those_before_each_update_and_episodes_restart_in_the_window_after_the_last():
    unroll, learner = quadratic_unroll(steps=6, window=3), Drift(jnp.asarray(VELOCITY))
    outputs = run_windows(unroll, learner, fresh(unroll, learner), 4)
    for output, (first, done) in zip(outputs, [(0, False), (3, True), (0, False), (3, True)], strict=True):
        np.testing.assert_allclose(output.losses, drift_losses(first, first + 3), rtol=1e-5)
        assert output.state.episode.step == output.state.train.learner_state == first + 3
        assert bool(output.state.episode.done) is done
        assert output.finite


def test_a_staggered_first_episode_is_just_shorter():
    unroll, learner = quadratic_unroll(steps=6, window=3), Drift(jnp.asarray(VELOCITY))
    state = eqx.tree_at(lambda s: s.episode.step, fresh(unroll, learner), jnp.asarray(3, jnp.int32))
    first, second = run_windows(unroll, learner, state, 2)
    assert first.state.episode.done and first.state.train.learner_state == 3
    np.testing.assert_allclose(first.losses, drift_losses(0, 3), rtol=1e-5)
    np.testing.assert_allclose(second.losses, drift_losses(0, 3), rtol=1e-5)


def test_windows_continue_each_other():
    learner = OptaxOptimizer(optax.sgd(0.1, momentum=0.9))
    split, whole = quadratic_unroll(steps=10, window=5), quadratic_unroll(steps=10, window=10)
    parts = run_windows(split, learner, fresh(split, learner), 2)
    (one,) = run_windows(whole, learner, fresh(whole, learner), 1)
    np.testing.assert_allclose(np.concatenate([p.losses for p in parts]), one.losses, rtol=1e-6)
    np.testing.assert_allclose(parts[-1].state.train.params, one.state.train.params, rtol=1e-6)
    assert parts[-1].state.episode.done and one.state.episode.done


def test_a_window_is_its_steps_one_after_the_other():
    unroll, learner = TruncatedUnroll(Noisy(), ConstantHorizon(10), 5), OptaxOptimizer(optax.sgd(0.1, momentum=0.9))
    state, key = fresh(unroll, learner), jax.random.key(7)
    output = unroll(learner, state, key=key)
    params, learner_state = state.train.params, state.train.learner_state
    for t, step_key in enumerate(jax.random.split(jax.random.split(key)[1], 5)):
        loss, params, learner_state = GradientStep().step(
            learner, unroll.task, params, learner_state, jnp.asarray(10, jnp.int32), key=step_key
        )
        np.testing.assert_allclose(output.losses[t], loss, rtol=1e-6)
    np.testing.assert_allclose(output.state.train.params, params, rtol=1e-6)


def test_a_gradient_step_applies_the_tasks_scales_around_the_learner():
    params, key, horizon = jnp.asarray(START), jax.random.key(0), jnp.asarray(10, jnp.int32)
    width = WidthSpec((3,), "hidden", 3, fan_in_mult=4.0, fan_out_mult=2.0)
    task = Quadratic(params, widths=width, parametrization=MuP())
    loss, after, _ = GradientStep().step(SGD(0.5), task, params, SGD(0.5).init(params), horizon, key=key)
    np.testing.assert_allclose(loss, 0.5 * np.sum(START**2), rtol=1e-6)
    np.testing.assert_allclose(after, START - 0.5 * 0.5 * START, rtol=1e-6)
    scaled = Scaled(SGD(0.5), 0.5)
    _, same, _ = GradientStep().step(scaled, Quadratic(params), params, scaled.init(params), horizon, key=key)
    np.testing.assert_array_equal(after, same)


def test_the_learner_is_told_the_loss_and_the_horizon():
    class Reporting(Drift):
        def update(self, grads, state, params, *, context=StepContext()):
            return jnp.stack([context.loss_array(), context.num_steps_array().astype(jnp.float32), 0.0]), state

    unroll = quadratic_unroll(steps=15, window=1)
    state = fresh(unroll, Reporting(jnp.zeros(3)))
    after = unroll(Reporting(jnp.zeros(3)), state, key=jax.random.key(0)).state.train.params
    np.testing.assert_allclose(after, START + np.array([0.5 * np.sum(START**2), 15, 0]), rtol=1e-6)


def test_a_run_that_becomes_nan_counts_as_the_maximum_and_restarts():
    unroll, learner = quadratic_unroll(steps=100, window=5, max_loss=7.0), SGD(1e30)
    first, second = run_windows(unroll, learner, fresh(unroll, learner), 2)
    for output in (first, second):
        np.testing.assert_allclose(output.losses, np.array([0.5 * np.sum(START**2), 7, 7, 7, 7]), rtol=1e-6)
        assert not output.finite
        assert output.state.episode.done
        assert output.state.episode.step == 5
    assert not np.all(np.isfinite(first.state.train.params))


def test_parameters_that_become_non_finite_in_the_last_step_are_noticed():
    unroll, learner = quadratic_unroll(steps=100, window=1), SGD(3e38)
    (output,) = run_windows(unroll, learner, fresh(unroll, learner), 1)
    assert np.all(np.isfinite(output.losses))
    assert not output.finite and output.state.episode.done


def test_a_large_but_finite_loss_is_clipped_and_stays_finite():
    unroll, learner = quadratic_unroll(steps=10, window=5, max_loss=7.0), Drift(jnp.full(3, 10.0))
    (output,) = run_windows(unroll, learner, fresh(unroll, learner), 1)
    np.testing.assert_allclose(output.losses, np.array([0.5 * np.sum(START**2), 7, 7, 7, 7]), rtol=1e-6)
    assert output.finite and not output.state.episode.done


def test_a_non_finite_loss_of_a_task_without_maximum_is_infinite():
    unroll, learner = quadratic_unroll(steps=10, window=5), SGD(1e30)
    (output,) = run_windows(unroll, learner, fresh(unroll, learner), 1)
    assert np.isinf(output.losses[-1]) and not np.any(np.isnan(output.losses))
    assert not output.finite


def test_a_restart_draws_new_parameters_and_a_new_horizon():
    unroll = TruncatedUnroll(Noisy(), LogUniformHorizon(2, 40), 2)
    state = eqx.tree_at(lambda s: s.episode.done, fresh(unroll, SGD(0.0)), jnp.asarray(True))
    call = eqx.filter_jit(lambda key: unroll(SGD(0.0), state, key=key).state)
    after = [call(key) for key in jax.random.split(jax.random.key(5), 8)]
    assert len({float(s.train.params[0]) for s in after}) == 8
    assert len({int(s.episode.horizon) for s in after}) > 2
    assert all(s.episode.step == 2 for s in after)


@pytest.mark.parametrize("parametrization", [SP(), MuP()])
@pytest.mark.parametrize("learner", [SGD(0.1), OptaxOptimizer(optax.adam, 1e-3), Mean()], ids=["SGD", "Adam", "mean"])
def test_a_model_and_its_task_give_the_same_scales(learner, parametrization):
    def build(key):
        return nn.MLP(64, 10, width=8, depth=2, parametrization=parametrization, key=key)

    task, model = ImageClassification(digits(), build), build(jax.random.key(0))
    found = scaled_for_model(model, learner)
    assert eqx.tree_equal(found, scaled_for(task, learner, task.init(key=jax.random.key(0))))
    assert (found is learner) == isinstance(parametrization, SP)


def test_a_model_of_other_layers_needs_scales_of_its_own():
    with pytest.raises(ValueError, match="`model` has arrays that no layer of `lo_components.nn` declares"):
        scaled_for_model(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)), SGD(0.1))
