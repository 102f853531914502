"""Metrics along the way, sweeps, intervals, and a learner of any kind for any function of `meta` that takes one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, Adam
from meta_helpers import START, Noisy, assert_identical, quadratic_unroll, toy_task

from lo_components import meta
from lo_components.aggregators import Mean, SlowMo
from lo_components.estimators import PES
from lo_components.meta import Evaluation, Sweep, coordinate_check, evaluate, median_interval, step_sizes, sweep
from lo_components.optimizers import OptaxOptimizer
from lo_components.tasks import Quadratic
from lo_components.unroll import GradientStep, LocalRound

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def optimized():
    """Compile as users do."""
    jax.config.update("jax_disable_most_optimizations", False)


TASK, KEY = toy_task(), jax.random.key(2)
QUADRATIC = Quadratic(jnp.asarray(START))
ROUND = LocalRound(2, 3, SGD(0.1))


# Learners.


@pytest.mark.parametrize(
    "make",
    [
        optax.adam,
        lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate)),
        lambda rate: optax.MultiSteps(optax.sgd(rate), 2),
    ],
)
def test_optax_transformations_are_evaluated_as_they_are(make):
    np.testing.assert_array_equal(
        evaluate(make(0.1), QUADRATIC, num_steps=20, key=KEY).losses,
        evaluate(OptaxOptimizer(make(0.1)), QUADRATIC, num_steps=20, key=KEY).losses,
    )
    assert_identical(
        step_sizes(make(0.1), QUADRATIC, num_steps=3, key=KEY),
        step_sizes(OptaxOptimizer(make(0.1)), QUADRATIC, num_steps=3, key=KEY),
    )


@pytest.mark.parametrize("learner", [SGD(0.1), optax.sgd(0.1)])
def test_rounds_of_an_optimizer_are_refused(learner):
    with pytest.raises(TypeError, match="LocalRound"):
        evaluate(learner, QUADRATIC, num_steps=5, inner_step=ROUND, key=KEY)
    with pytest.raises(TypeError, match="LocalRound"):
        coordinate_check(learner, lambda w: toy_task(width=w), widths=(4, 8), inner_step=ROUND, key=KEY)


def test_gradient_steps_of_an_aggregator_are_refused():
    for refused in (
        lambda: evaluate(Mean(), QUADRATIC, num_steps=5, key=KEY),
        lambda: step_sizes(Mean(), QUADRATIC, num_steps=5, key=KEY),
        lambda: coordinate_check(Mean(), lambda w: toy_task(width=w), widths=(4, 8), key=KEY),
    ):
        with pytest.raises(TypeError, match="GradientStep"):
            refused()


def test_the_default_meta_optimizer_is_that_of_the_papers():
    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    train = lambda **options: meta.meta_train(  # noqa: E731
        SGD(jnp.asarray(0.01)), estimator, num_steps=6, progress=None, key=KEY, **options
    )
    default = train()
    assert_identical(default, train(optimizer=meta.meta_optimizer(6)))
    assert (
        default.hyperparameters["learning_rate"]
        != train(optimizer=meta.meta_optimizer(60)).hyperparameters["learning_rate"]
    )


# Metrics.

OPTIONS = dict(num_steps=11, num_seeds=2, key=KEY)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("every", "steps"), [(None, [11]), (1, [*range(1, 12)]), (4, [4, 8, 11])])
def test_metrics_are_measured_every_few_steps_and_after_the_last(every, steps):
    plain = evaluate(Adam(0.1), TASK, **OPTIONS)
    found = evaluate(Adam(0.1), TASK, splits=("train", "test"), metrics_every=every, **OPTIONS)
    assert found.metric_steps.tolist() == steps
    assert {split: set(by_name) for split, by_name in found.metrics.items()} == {
        split: {"loss", "accuracy"} for split in ("train", "test")
    }
    for values in jax.tree.leaves(found.metrics):
        assert values.shape == (2, len(steps)) and np.all(np.isfinite(values))
    # Losses are those of a call without metrics, in every bit.
    assert_identical((found.losses, found.finite), (plain.losses, plain.finite))
    assert plain.metrics == {}


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6]), (99, [6])]
)
def test_the_last_step_is_measured_once(every, steps):
    evaluation = Evaluation(jnp.zeros((2, 6)), jnp.ones(2, bool), metrics_every=every)
    assert evaluation.metric_steps.tolist() == steps


def test_metrics_are_those_of_the_parameters_at_that_step():
    found = evaluate(Adam(0.1), TASK, splits=["train", "test"], metrics_every=4, **OPTIONS)
    for seed in range(2):
        init_key, steps_key = jax.random.split(jax.random.fold_in(KEY, seed))
        params = TASK.init(key=init_key)
        state, point = Adam(0.1).init(params), 0
        for t, key in enumerate(jax.random.split(steps_key, 11), 1):
            _, params, state = eqx.filter_jit(GradientStep().step)(
                Adam(0.1), TASK, params, state, jnp.asarray(11, jnp.int32), key=key
            )
            if t in (4, 8, 11):
                for split in ("train", "test"):
                    expected = TASK.metrics(params, split=split, key=KEY)
                    for name, value in expected.items():
                        np.testing.assert_allclose(found.metrics[split][name][seed, point], value, rtol=1e-4)
                point += 1
    assert found.metrics["train"]["loss"][0, 0] > found.metrics["train"]["loss"][0, -1]


def test_rounds_have_metrics_too():
    plain, found = (
        evaluate(SlowMo(0.5), TASK, inner_step=ROUND, **options, **OPTIONS)
        for options in ({}, dict(splits=("test",), metrics_every=3))
    )
    assert_identical((found.losses, found.used), (plain.losses, plain.used))
    assert found.metrics["test"]["accuracy"].shape == (2, 4)


def test_metrics_that_cannot_be_measured_are_refused():
    with pytest.raises(TypeError, match="`splits` needs a task with metrics, but Noisy is not"):
        evaluate(SGD(0.1), Noisy(), splits=("test",), **OPTIONS)
    with pytest.raises(ValueError, match="`metrics_every` needs `splits`"):
        evaluate(SGD(0.1), TASK, metrics_every=3, **OPTIONS)
    with pytest.raises(ValueError, match="`metrics_every` must be at least 1, got 0"):
        evaluate(SGD(0.1), TASK, splits=("test",), metrics_every=0, **OPTIONS)
    with pytest.raises(ValueError, match="`split` must be one of"):
        evaluate(SGD(0.1), TASK, splits=("tset",), **OPTIONS)


# Sweeps.


@pytest.mark.parametrize("at_once", [None, 1, 2, 9])
def test_learning_rates_side_by_side_equal_those_one_by_one(at_once):
    rates = np.array([0.01, 0.1, 0.5], np.float32)
    found = sweep(
        lambda rate: evaluate(Adam(rate), Noisy(), num_steps=30, num_seeds=2, key=KEY), rates, at_once=at_once
    )
    np.testing.assert_array_equal(found.grid, rates)
    grid = found.evaluations
    assert grid.losses.shape == (3, 2, 30) and grid.finite.shape == (3, 2)
    single = [evaluate(Adam(jnp.asarray(rate)), Noisy(), num_steps=30, num_seeds=2, key=KEY) for rate in rates]
    np.testing.assert_allclose(grid.losses, np.stack([s.losses for s in single]), rtol=1e-4)
    np.testing.assert_allclose(grid.final(5), np.stack([s.final(5) for s in single]), rtol=1e-4)
    assert grid.final(5).shape == (3, 2)


def test_learner_inner_step_and_task_may_all_depend_on_the_configuration():
    """Of a quadratic whose start is scaled, with one round of local SGD and momentum."""

    def run(configuration):
        inner_step = LocalRound(2, 1, SGD(configuration["rate"]))
        task = Quadratic(configuration["scale"] * jnp.asarray(START))
        learner = SlowMo(configuration["momentum"])
        return evaluate(learner, task, num_steps=2, num_seeds=1, inner_step=inner_step, key=KEY)

    rate, momentum, scale = (x.ravel() for x in np.meshgrid([0.1, 0.5], [0.0, 0.5], [1.0, 2.0]))
    found = sweep(run, {"rate": rate, "momentum": momentum, "scale": scale})
    first = 0.5 * scale**2 * np.sum(START**2)
    np.testing.assert_allclose(found.evaluations.losses[:, 0, 0], first, rtol=1e-5)
    np.testing.assert_allclose(found.evaluations.losses[:, 0, 1], first * (1 - rate) ** 2, rtol=1e-5)


def sweep_of(losses, grid, **metrics):
    losses = jnp.asarray(losses, jnp.float32)[..., None]
    evaluations = jax.vmap(lambda x: Evaluation(x, jnp.all(jnp.isfinite(x), axis=1)))(losses)
    return Sweep(jax.tree.map(jnp.asarray, grid), evaluations)


def test_the_best_configuration_has_the_lowest_mean_over_seeds():
    found = sweep_of([[3.0, 3.0], [0.0, 5.0], [2.0, 2.0], [9.0, 9.0]], jnp.arange(4.0)).best()
    assert (found.index, found.score, found.at_edge) == (2, 2.0, ())
    assert found.configuration == 2.0 and found.configuration.shape == ()
    np.testing.assert_array_equal(found.evaluation.losses, [[2.0], [2.0]])
    highest = sweep_of([[1.0], [3.0], [2.0]], jnp.arange(3.0)).best(lambda e: -e.final())
    assert (highest.index, highest.score) == (1, -3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_rank_last(bad):
    found = sweep_of([[bad, 0.0], [5.0, 6.0], [bad, bad], [7.0, 7.0]], jnp.arange(4.0)).best()
    assert found.index == 1
    with pytest.raises(ValueError, match="No configuration of the sweep has a finite score"):
        sweep_of([[bad], [bad]], jnp.arange(2.0)).best()


def test_a_best_value_at_the_edge_of_the_grid_is_reported():
    assert sweep_of([[1.0], [2.0], [3.0]], jnp.arange(3.0)).best().at_edge == ("grid",)
    assert sweep_of([[1.0]], jnp.arange(1.0)).best().at_edge == ()
    rate, momentum, constant = jnp.array([1.0, 2.0, 3.0, 2.0]), jnp.array([0.5, 0.9, 0.5, 0.5]), jnp.ones(4)
    grid = {"rate": rate, "nested": {"momentum": momentum}, "constant": constant}
    assert sweep_of([[4.0], [1.0], [2.0], [3.0]], grid).best().at_edge == ("nested/momentum",)
    assert set(sweep_of([[4.0], [2.0], [1.0], [3.0]], grid).best().at_edge) == {"nested/momentum", "rate"}


@pytest.mark.parametrize(
    "grid", [(), 0.1, jnp.zeros((2, 2)), jnp.zeros(0), {"a": jnp.ones(2), "b": jnp.ones(3)}], ids=str
)
def test_grids_that_are_not_vectors_of_one_length_are_refused(grid):
    with pytest.raises(ValueError, match="`grid` must have vectors of one length"):
        sweep(lambda rate: evaluate(SGD(rate), QUADRATIC, num_steps=1, key=KEY), grid)


def test_no_configurations_at_once_are_refused():
    with pytest.raises(ValueError, match="`at_once` must be at least 1, got 0"):
        sweep(lambda rate: evaluate(SGD(rate), QUADRATIC, num_steps=1, key=KEY), jnp.ones(2), at_once=0)


# Intervals.


def test_an_interval_is_that_of_the_bootstrap_distribution():
    """Of three different values the median of a resample is each with a probability that is known exactly."""
    values = jnp.array([30.0, 10.0, 20.0])
    # The lowest value is the median with probability 3 (1/3)^2 (2/3) + (1/3)^3 = 7/27 = 0.26, and so is the highest.
    for confidence, low, high in ((0.95, 10.0, 30.0), (0.5, 10.0, 30.0), (0.45, 20.0, 20.0)):
        found = median_interval(values, confidence=confidence, key=KEY)
        assert found == (20.0, low, high)
    assert median_interval(values, key=KEY) == median_interval(np.asarray(values), key=KEY)
    assert median_interval(jnp.array([10.0, 20.0]), key=KEY) == (15.0, 10.0, 20.0)


def test_intervals_cover_the_true_median_about_as_often_as_they_say():
    """Of 30 exponential variables, whose median is log 2, in 400 experiments."""
    samples = np.random.default_rng(0).exponential(size=(400, 30)).astype(np.float32)
    found = [median_interval(x, num_resamples=500, key=jax.random.key(i)) for i, x in enumerate(samples)]
    coverage = np.mean([low <= np.log(2) <= high for _, low, high in found])
    # Three standard errors of a fraction of 0.95 in 400 are 0.033; the percentile bootstrap of a median is discrete.
    assert 0.95 - 0.033 < coverage < 0.95 + 0.033


def test_seeds_that_never_get_there_are_infinite_in_the_interval():
    inf = np.inf
    assert median_interval(jnp.array([inf, inf, inf]), key=KEY) == (inf, inf, inf)
    assert median_interval(jnp.array([10.0, 20.0, inf]), key=KEY) == (20.0, 10.0, inf)
    assert median_interval(jnp.array([10.0, jnp.nan, inf]), key=KEY) == (inf, 10.0, inf)
    assert median_interval(jnp.array([10.0, inf]), key=KEY) == (inf, 10.0, inf)
    # One of 21 hardly ever is the median of a resample.
    mostly = jnp.append(jnp.arange(1.0, 21.0), inf)
    found = median_interval(mostly, key=KEY)
    assert found.value == 11.0 and found.low < 11.0 < found.high < 20.0


def test_ratios_of_medians():
    inf, twenty = np.inf, jnp.full(5, 20.0)
    assert median_interval(twenty, over=jnp.full(3, 10.0), key=KEY) == (2.0, 2.0, 2.0)
    assert median_interval(jnp.full(3, inf), over=twenty, key=KEY) == (inf, inf, inf)
    assert median_interval(twenty, over=jnp.full(3, inf), key=KEY) == (0.0, 0.0, 0.0)
    undetermined = median_interval(jnp.full(3, inf), over=jnp.full(3, inf), key=KEY)
    assert np.isnan(undetermined.value) and undetermined[1:] == (0.0, inf)
    some = median_interval(jnp.array([10.0, 20.0, inf]), over=jnp.array([10.0, 20.0, inf]), key=KEY)
    assert some == (1.0, 0.0, inf)
    # Resampled independently: the ratio of two equal samples is not certain to be one.
    same = median_interval(jnp.arange(1.0, 12.0), over=jnp.arange(1.0, 12.0), key=KEY)
    assert same.value == 1.0 and same.low < 0.8 and same.high > 1.25


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0])
def test_impossible_confidences_are_refused(confidence):
    with pytest.raises(ValueError, match=f"`confidence` must be between 0 and 1, got {confidence}"):
        median_interval(jnp.ones(3), confidence=confidence, key=KEY)


def test_intervals_of_nothing_are_refused():
    for arguments in (
        dict(values=jnp.ones(0)),
        dict(values=jnp.ones(2), over=jnp.ones(0)),
        dict(values=jnp.ones(2), num_resamples=0),
    ):
        with pytest.raises(ValueError, match="must be at least 1"):
            median_interval(**arguments, key=KEY)
