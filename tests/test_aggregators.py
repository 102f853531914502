import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, assert_close, normal_tree
from meta_helpers import START, Counting, HashableList, Noisy

from lo_components import aggregators, heads, optimizers, recipes, sharding
from lo_components.accumulators import TensorView
from lo_components.aggregators import (
    AbstractMaskedAggregator,
    LearnedAggregator,
    Mean,
    OuterOptimizer,
    Scaled,
    Scheduled,
    Screened,
    SlowMo,
)
from lo_components.estimators import PES, TruncatedBackprop
from lo_components.features import AbstractFeature, Channels, Gradient, PooledWorkerDeltas
from lo_components.optimizers import AbstractOptimizer, LearnedOptimizer, OptaxOptimizer, StepContext
from lo_components.parametrization import SCALE_FREE, SP, AbstractParametrization, MuP, WidthSpec, every_leaf
from lo_components.pipeline import Pipeline
from lo_components.schedules import OptaxSchedule, WarmUpAndDecay
from lo_components.steps import Direction
from lo_components.tasks import AbstractTask, Quadratic
from lo_components.unroll import ConstantHorizon, GradientStep, LocalRound, TruncatedUnroll

WORKERS = 4
SHAPES = {"w": (3, 5), "b": (5,)}


def rounds(aggregator, deltas, params, num_rounds=3) -> tuple[Any, Any]:
    """Parameters and state after some rounds with the same deltas."""
    state, aggregate = aggregator.init(params), eqx.filter_jit(aggregator.aggregate)
    for _ in range(num_rounds):
        update, state = aggregate(deltas, state, params)
        params = optax.apply_updates(params, update)
    return params, state


@pytest.fixture
def params(getkey):
    return normal_tree(SHAPES, getkey())


@pytest.fixture
def deltas(getkey):
    return normal_tree({k: (WORKERS, *s) for k, s in SHAPES.items()}, getkey())


def test_the_mean_moves_to_the_mean_of_the_workers_parameters(params, deltas):
    new, _ = rounds(Mean(), deltas, params, 1)
    workers = jax.tree.map(lambda p, d: p[None] + d, params, deltas)
    assert_close(new, jax.tree.map(lambda x: jnp.mean(x, axis=0), workers), rtol=1e-5, atol=1e-6)


def slowmo_in_numpy(deltas, params, beta, step, gamma):
    """u <- beta u + (x - mean of x_k) / gamma, x <- x - step u."""
    x, u = np.asarray(params, np.float64), 0.0
    for _ in range(3):
        u = beta * u - np.mean(np.asarray(deltas, np.float64), axis=0) / gamma
        x = x - step * u
    return x


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_slowmo_is_the_papers_and_the_research_codes(beta, params, deltas):
    alpha, gamma = 0.9, 0.3
    papers, _ = rounds(SlowMo(beta, alpha), deltas, params)
    codes, _ = rounds(SlowMo.absolute(momentum=beta, learning_rate=alpha, local_learning_rate=gamma), deltas, params)
    for name, p in params.items():
        np.testing.assert_allclose(
            papers[name], slowmo_in_numpy(deltas[name], p, beta, alpha * gamma, gamma), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            codes[name], slowmo_in_numpy(deltas[name], p, beta, alpha, gamma), rtol=1e-5, atol=1e-6
        )


def test_slowmo_without_momentum_and_outer_sgd_of_rate_1_are_the_mean(params, deltas):
    expected, _ = rounds(Mean(), deltas, params)
    for same in (SlowMo(0.0), OuterOptimizer(optax.sgd(1.0)), OuterOptimizer(SGD(1.0))):
        assert_close(rounds(same, deltas, params)[0], expected, rtol=1e-6)


def test_an_outer_optimizer_is_given_minus_the_mean_delta(params, deltas):
    transformation = optax.sgd(0.7, momentum=0.9, nesterov=True)
    expected, state = params, transformation.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda d: -jnp.mean(d, axis=0), deltas)
        updates, state = transformation.update(grads, state)
        expected = optax.apply_updates(expected, updates)
    assert_close(rounds(OuterOptimizer(transformation), deltas, params)[0], expected, rtol=1e-5, atol=1e-6)


def test_impossible_hyperparameters_are_refused():
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="`momentum` must be at least 0 and below 1"):
            SlowMo(momentum)
    with pytest.raises(ValueError, match="`local_learning_rate` must be positive"):
        SlowMo.absolute(momentum=0.5, learning_rate=1.0, local_learning_rate=0.0)


def test_the_learned_pipeline_is_fed_the_mean_delta_as_it_is(params, deltas):
    head = heads.LinearHead(1, 1, key=jax.random.key(0))
    identity = eqx.tree_at(lambda h: (h.weight, h.bias), head, (jnp.ones((1, 1)), jnp.zeros(1)))
    aggregator = LearnedAggregator(Pipeline((), Gradient(), identity, Direction(0.5)))
    update, _ = aggregator.aggregate(deltas, aggregator.init(params), params)
    assert_close(update, jax.tree.map(lambda d: -0.5 * jnp.mean(d, axis=0), deltas), rtol=1e-5)


@pytest.mark.parametrize("name", ["Mean", "LOpt-A", "pooled LAgg-A", "LAgg-A"])
def test_only_aggregators_that_see_each_worker_depend_on_their_order(name, params, deltas):
    aggregator = {
        "Mean": lambda key: Mean(),
        "LOpt-A": lambda key: recipes.lopt_a(hidden_size=4, step_mult=0.1, key=key),
        "pooled LAgg-A": lambda key: recipes.pooled_lagg_a(hidden_size=4, step_mult=0.1, key=key),
        "LAgg-A": lambda key: recipes.lagg_a(WORKERS, hidden_size=4, step_mult=0.1, key=key),
    }[name](jax.random.key(0))
    permuted = jax.tree.map(lambda d: d[jnp.array([2, 0, 3, 1])], deltas)
    aggregate = eqx.filter_jit(aggregator.aggregate)
    a, b = (aggregate(d, aggregator.init(params), params)[0]["w"] for d in (deltas, permuted))
    largest, moved = jnp.max(jnp.abs(a)), jnp.max(jnp.abs(a - b))
    assert moved > 1e-3 * largest if name == "LAgg-A" else moved < 1e-5 * largest


def test_another_number_of_workers_is_refused_by_name(params, deltas):
    aggregator = recipes.lagg(WORKERS + 1, hidden_size=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="built for 5 workers, but got deltas from 4"):
        aggregator.aggregate(deltas, aggregator.init(params), params)
    with pytest.raises(ValueError, match="needs `deltas`.* use it in a `LearnedAggregator`"):
        optimizer = LearnedOptimizer(aggregator.pipeline)
        optimizer.update(params, optimizer.init(params), params)


def test_a_pooled_embedding_tells_agreement_from_disagreement_and_takes_any_number_of_workers():
    feature = PooledWorkerDeltas(3, key=jax.random.key(0))

    def channels(deltas):
        deltas = jnp.asarray(deltas)[:, None]
        mean = jnp.mean(deltas, axis=0)
        return feature(TensorView(mean, mean, (), jnp.asarray(0), deltas=deltas))[0].values[:, 0]

    # By hand: means over workers of max(0, a d + b mean).
    a, b, deltas = feature.worker, feature.mean, np.array([3.0, -1.0])
    expected = [np.mean([max(0.0, a[j] * d + b[j] * 1.0) for d in deltas]) for j in range(3)]
    np.testing.assert_allclose(channels(deltas), expected, rtol=1e-5)
    np.testing.assert_allclose(channels(np.repeat(deltas, 3)), expected, rtol=1e-5)
    assert np.max(np.abs(channels([1.0, 1.0]) - channels(deltas))) > 0.1


def test_a_scaled_aggregators_update_is_multiplied_leaf_by_leaf(params, deltas):
    scales = {name: float(i + 2) for i, name in enumerate(params)}
    plain, _ = Mean().aggregate(deltas, Mean().init(params), params)
    scaled = Scaled(Mean(), scales)
    update, _ = scaled.aggregate(deltas, scaled.init(params), params)
    assert_close(update, {name: scales[name] * plain[name] for name in params}, rtol=1e-6)
    wrong = Scaled(Mean(), {"w": 1.0})
    for attempt in (lambda: wrong.init(params), lambda: wrong.aggregate(deltas, scaled.init(params), params)):
        with pytest.raises(ValueError, match="`scales` (must hold|holds) a number for"):
            attempt()


def screened_share(deltas, present=None):
    deltas = {"a": jnp.asarray(deltas, jnp.float32)[:, None], "b": jnp.zeros((len(deltas), 0))}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(0)}
    aggregator = Screened(Mean())
    update, state = eqx.filter_jit(aggregator.aggregate)(deltas, aggregator.init(params), params, present=present)
    return float(update["a"][0]), float(state.used)


def test_workers_with_far_larger_deltas_are_left_out_and_reported():
    assert screened_share([1.0, 100.0, 2.0, -3.0]) == (0.0, 0.75)
    # Of two, the smaller is believed; of none but large ones, all are.
    assert screened_share([1.0, -11.0]) == (1.0, 0.5)
    assert screened_share([1e30, -1e30]) == (0.0, 1.0)
    assert screened_share([1e30, 1e30, 1e32])[1] == np.float32(2 / 3)
    assert screened_share([0.0, 0.0]) == (0.0, 1.0)
    # Where most stand still, those that move are not too large.
    assert screened_share([0.0, 0.0, 3.0])[1] == 1.0
    assert screened_share([1.0, 1.0, 9.9])[1] == 1.0 and screened_share([1.0, 1.0, 10.1])[1] < 1.0
    # The norm of workers that are absent or not finite does not count.
    assert screened_share([1.0, jnp.nan, 100.0, 0.001], present=jnp.array([True, True, True, False])) == (1.0, 0.25)
    assert screened_share([jnp.inf, jnp.nan]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="`max_ratio` must be at least 1, got 0.5"):
        Screened(Mean(), 0.5)


def test_screening_goes_by_the_norm_over_all_tensors(params):
    deltas = jax.tree.map(lambda p: jnp.ones((WORKERS, *p.shape)), params)
    # Larger in one tensor than all else together, but by less than the ratio.
    count = sum(p.size for p in params.values())
    for factor, share in ((9.0, 1.0), (11.0, 0.75)):
        scale = {name: d.at[1].multiply(factor) for name, d in deltas.items()}
        _, state = Screened(Mean()).aggregate(scale, Mean().init(params), params)
        assert state.used == share
    one = {**deltas, "w": deltas["w"].at[1].multiply(9.0 * np.sqrt(count / params["w"].size))}
    _, state = Screened(Mean()).aggregate(one, Mean().init(params), params)
    assert state.used == 1.0


def test_a_round_costs_what_a_ring_sends():
    params = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(2, jnp.bfloat16)}
    cost = aggregators.round_cost(params, 4, local_steps=3, batch_size=32)
    assert cost == aggregators.RoundCost(2 * 4 * 17 * 3 / 4, 3, 4 * 3 * 32)
    assert aggregators.round_cost(jax.eval_shape(lambda: params), 1).bytes_sent == 0.0
    with pytest.raises(ValueError, match="`local_steps` must be at least 1, got 0"):
        aggregators.round_cost(params, 4, local_steps=0)


# Rounds.


class Diverse(AbstractTask):
    """Half the squared distance to a point of each worker's own."""

    points: jax.Array
    widths: Any = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = eqx.field(default=math.inf, static=True)

    def init(self, *, key):
        return jnp.asarray(START)

    def batch(self, *, key, split="train", worker=None):
        return self.points[worker]

    def loss(self, params, batch, *, key):
        return 0.5 * jnp.sum(jnp.square(params - batch))


POINTS = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], np.float32)


def one_round(inner, aggregator, task, *, key=jax.random.key(0)):
    params = task.init(key=key)
    state = inner.init(aggregator, params)
    return eqx.filter_jit(inner.step)(aggregator, task, params, state, jnp.asarray(10, jnp.int32), key=key)


def test_the_mean_of_one_worker_with_one_step_is_sgd():
    task = Quadratic(jnp.asarray(START))
    loss, params, _ = one_round(LocalRound(1, 1, SGD(0.3)), Mean(), task)
    expected_loss, expected, _ = one_round(GradientStep(), SGD(0.3), task)
    np.testing.assert_allclose(params, expected, rtol=1e-6)
    assert loss == expected_loss


@pytest.mark.parametrize("steps", [1, 3])
def test_a_round_is_local_steps_on_each_workers_own_data(steps):
    task, lr = Diverse(jnp.asarray(POINTS)), 0.2
    loss, params, state = one_round(LocalRound(2, steps, SGD(lr)), Mean(), task)
    # The distance to a worker's point shrinks by 1 - lr in each of its steps.
    ends = POINTS + (1 - lr) ** steps * (START - POINTS)
    np.testing.assert_allclose(params, ends.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(0.5 * np.sum((START - POINTS) ** 2, axis=1)), rtol=1e-6)
    assert state.used == 1.0


def test_the_local_optimizer_starts_anew_in_each_round():
    task, local = Diverse(jnp.asarray(POINTS[:1])), OptaxOptimizer(optax.sgd(0.1, momentum=0.9))
    inner = LocalRound(1, 2, local)
    _, params, state = one_round(inner, Mean(), task)
    _, twice, _ = inner.step(Mean(), task, params, state, jnp.asarray(10, jnp.int32), key=jax.random.key(1))
    # From distance e the steps lead to 0.9 e and, with velocity 0.9 e + 0.9 e, to 0.72 e.
    np.testing.assert_allclose(twice - POINTS[0], 0.72**2 * (START - POINTS[0]), rtol=1e-5)


class Recording(AbstractMaskedAggregator):
    """The mean, with a state of all that the aggregator was given."""

    num_workers: int = eqx.field(static=True)

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init_inner(self, params):
        return jnp.zeros((self.num_workers, *params.shape)), jnp.zeros(()), jnp.zeros((), jnp.int32)

    def combine(self, mean, deltas, state, params, *, context):
        return mean, (deltas, context.loss_array(), context.num_steps_array())


def test_every_worker_and_every_local_step_has_its_own_keys():
    # With rate 1 a worker ends at the target of its last batch.
    (ones, *_), (twos, *_) = (
        one_round(LocalRound(3, steps, SGD(1.0)), Recording(3), Noisy())[2].inner for steps in (1, 2)
    )
    targets = np.concatenate([ones, twos])
    assert len(np.unique(targets.round(4), axis=0)) == 6


def test_the_aggregator_is_told_the_mean_loss_and_the_number_of_rounds():
    loss, _, state = one_round(LocalRound(2, 3), Recording(2), Diverse(jnp.asarray(POINTS)))
    assert state.inner[1] == loss
    assert state.inner[2] == 10


# Updates of a hidden matrix: Adam's are divided by 4, SGD's multiplied by 2 / 4.
WIDER = dict(widths=WidthSpec((3,), "hidden", 3, fan_in_mult=4.0, fan_out_mult=2.0), parametrization=MuP())


def test_local_steps_and_aggregators_are_scaled_each_by_its_own_rule():
    task, inner = Diverse(jnp.asarray(POINTS)), LocalRound(2, 1, SGD(0.2))
    wider = dataclasses.replace(task, **WIDER)
    for aggregator, factor in (
        (Recording(2), 0.5 * 0.25),
        (Mean(), 0.5),
        (SlowMo(0.5), 0.5),
        (OuterOptimizer(optax.sgd(0.7, momentum=0.9, nesterov=True)), 0.5),
        (Scaled(Screened(Mean()), 3.0), 0.5),
    ):
        _, plain, _ = one_round(inner, aggregator, task)
        _, scaled, _ = one_round(inner, aggregator, wider)
        np.testing.assert_allclose(scaled - START, factor * (plain - START), rtol=1e-5)
    # An outer Adam does not see the size of the deltas.
    with jax.numpy_dtype_promotion("standard"):
        outer = OuterOptimizer(optax.adam(0.1))
        _, plain, _ = one_round(inner, outer, task)
        _, scaled, _ = one_round(inner, outer, wider)
    np.testing.assert_allclose(scaled - START, 0.25 * (plain - START), rtol=1e-4)


def test_a_diverging_worker_is_left_out_and_reported():
    task = Diverse(jnp.asarray(np.stack([POINTS[0], np.full(3, np.inf, np.float32)])))
    loss, params, state = one_round(LocalRound(2, 1, SGD(0.2)), Mean(), task)
    np.testing.assert_allclose(params, START + 0.2 * (POINTS[0] - START), rtol=1e-5)
    assert state.used == 0.5
    np.testing.assert_allclose(loss, 0.5 * np.sum((START - POINTS[0]) ** 2), rtol=1e-6)


def test_the_loss_is_that_of_the_workers_that_take_part():
    points = np.zeros((8, 3), np.float32)
    points[:, 0] = np.arange(8)
    inner, task = LocalRound(8, 1, SGD(0.1), participation=0.5), Diverse(jnp.asarray(points))
    losses = 0.5 * np.sum((START - points) ** 2, axis=1)
    for seed in range(3):
        key = jax.random.key(seed)
        loss, _, state = one_round(inner, Mean(), task, key=key)
        present = np.asarray(jax.random.bernoulli(inner.presence_key(key=key), 0.5, (8,)))
        assert 0 < present.sum() < 8
        assert state.used == present.mean()
        np.testing.assert_allclose(loss, losses[present].mean(), rtol=1e-6)
    assert jnp.isnan(one_round(LocalRound(2, 1, SGD(0.1)), Mean(), Diverse(jnp.full((2, 3), jnp.nan)))[0])


def test_workers_take_part_with_the_probability_that_is_asked_for():
    inner = LocalRound(40, 1, SGD(0.1), participation=0.7)
    keys = jax.random.split(jax.random.key(3), 50)
    used = jax.jit(jax.vmap(lambda key: one_round(inner, Mean(), Noisy(), key=key)[2].used))(keys)
    # Each is a mean over 40 workers; five standard errors.
    np.testing.assert_allclose(np.mean(used), 0.7, atol=5 * np.sqrt(0.21 / 2000))
    np.testing.assert_allclose(np.std(used), np.sqrt(0.21 / 40), rtol=0.5)
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="`participation` must be above 0 and at most 1"):
            LocalRound(2, 1, participation=wrong)


def test_another_number_of_local_steps_is_not_traced_again():
    traces = HashableList()
    local = Counting(0.1, traces)
    for steps in (1, 2, 5):
        run_round(LocalRound(2, steps, local), Mean(), Quadratic(jnp.asarray(START)), jnp.asarray(START), key=None)
    assert len(traces) == 1


@eqx.filter_jit
def run_round(inner, aggregator, task, params, *, key):
    key = jax.random.key(0) if key is None else key
    return inner.step(aggregator, task, params, inner.init(aggregator, params), jnp.asarray(10, jnp.int32), key=key)


def test_rounds_mapped_over_runs_equal_separate_rounds():
    inner, keys = LocalRound(2, 3, SGD(0.3)), jax.random.split(jax.random.key(0), 2)
    run = lambda key: run_round(inner, SlowMo(), Noisy(), jnp.asarray(START), key=key)  # noqa: E731
    mapped = jax.vmap(run)(keys)
    for i, key in enumerate(keys):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), run(key), rtol=1e-5, atol=1e-6)


def test_pes_estimates_gradients_of_aggregators():
    aggregator = SlowMo(jnp.asarray(0.5), jnp.asarray(0.9))
    unroll = TruncatedUnroll(Noisy(), ConstantHorizon(4), 2, inner_step=LocalRound(2, 2, SGD(0.1)))
    estimator = PES(unroll, num_pairs=2)
    state = eqx.filter_jit(estimator.init)(aggregator, key=jax.random.key(1))
    estimate, state = eqx.filter_jit(estimator.estimate)(aggregator, state, key=jax.random.key(2))
    assert estimate.finite == 1.0
    assert jnp.all(state.inner.train.learner_state.used == 1.0)
    for path, g in jax.tree_util.tree_leaves_with_path(estimate.grad):
        assert jnp.all(jnp.isfinite(g)) and jnp.any(g != 0), path


class Telling(AbstractOptimizer):
    """An update that adds up what the context tells: the loss, and a hundredth of the number of steps."""

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return ()

    def update(self, grads, state, params, *, context=StepContext()):
        told = context.loss_array() + 0.01 * context.num_steps_array().astype(jnp.float32)
        return jax.tree.map(lambda p: jnp.full(p.shape, told), params), state


def test_local_and_outer_optimizers_are_told_the_loss_and_the_number_of_steps():
    task = Diverse(jnp.asarray(POINTS[:1]))
    first = 0.5 * np.sum((START - POINTS[0]) ** 2)
    _, params, _ = one_round(LocalRound(1, 1, Telling()), Mean(), task)
    np.testing.assert_allclose(params - START, first + 0.01, rtol=1e-5)
    _, params, _ = one_round(LocalRound(1, 1, SGD(0.1)), OuterOptimizer(Telling()), task)
    np.testing.assert_allclose(params - START, first + 0.1, rtol=1e-5)


class Told(AbstractFeature):
    """The loss and a hundredth of the number of steps."""

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        told = view.loss + 0.01 * view.num_steps.astype(jnp.float32)
        return (Channels(told.reshape((1,) * (1 + view.param.ndim))),)


def test_features_of_learned_aggregators_are_told_too():
    head = heads.LinearHead(1, 1, key=jax.random.key(0))
    identity = eqx.tree_at(lambda h: (h.weight, h.bias), head, (jnp.ones((1, 1)), jnp.zeros(1)))
    aggregator = LearnedAggregator(Pipeline((), Told(), identity, Direction(1.0)))
    loss, params, _ = one_round(LocalRound(1, 1, SGD(0.1)), aggregator, Diverse(jnp.asarray(POINTS[:1])))
    np.testing.assert_allclose(START - params, loss + 0.1, rtol=1e-5)


def test_who_takes_part_is_drawn_apart_from_the_workers_own_keys():
    inner = LocalRound(4, 1, SGD(1.0), participation=0.5)
    own = [jax.random.key_data(key).tolist() for key in inner.workers(key=jax.random.key(0))[1]]
    assert jax.random.key_data(inner.presence_key(key=jax.random.key(0))).tolist() not in own
    assert len({tuple(key) for key in own}) == 4


def test_any_optax_transformation_takes_local_steps_and_nothing_else_does():
    task = Diverse(jnp.asarray(POINTS))
    expected = one_round(LocalRound(2, 3, OptaxOptimizer(optax.sgd(0.1, momentum=0.9))), Mean(), task)
    assert_close(one_round(LocalRound(2, 3, optax.sgd(0.1, momentum=0.9)), Mean(), task), expected, rtol=0, atol=0)
    with pytest.raises(TypeError, match="local_optimizer"):
        LocalRound(2, 1, 0.1)
    with pytest.raises(TypeError, match="optimizer"):
        OuterOptimizer("adam")


def test_learners_of_the_other_kind_are_refused_by_name():
    # The types are checked in all tests, before the message that users see.
    with pytest.raises(TypeError, match="(?s)learner.*OptaxOptimizer"):
        LocalRound(2, 1).init(SGD(0.1), jnp.zeros(2))
    with pytest.raises(TypeError, match="(?s)learner.*Mean"):
        GradientStep().init(Mean(), jnp.zeros(2))


def test_deltas_of_bfloat16_parameters_are_exact():
    """1 + 1/512 is not a bfloat16; a difference of bfloat16 numbers, and a mean of two, need not be one."""

    class Halved(Diverse):
        def init(self, *, key):
            return jnp.asarray([1.0, 256.0, 0.0], jnp.bfloat16)

        def loss(self, params, batch, *, key):
            return super().loss(params.astype(jnp.float32), batch, key=key)

    task = Halved(jnp.asarray([[1.0078125, 0.0, 0.0], [1.0, 0.0, 0.0]], jnp.float32))
    _, _, state = one_round(LocalRound(2, 1, SGD(1.0)), Recording(2), task)
    deltas = state.inner[0]
    assert deltas.dtype == jnp.float32
    np.testing.assert_array_equal(deltas[:, 0], [0.0078125, 0.0])
    given, params = jnp.asarray([[256.0], [1.0]], jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
    recording = Recording(2)
    _, after = recording.aggregate(given, recording.init(params), params, context=StepContext(loss=0.0, num_steps=1))
    assert after.inner[0].dtype == jnp.float32


@pytest.mark.parametrize("aggregator", [OuterOptimizer(optax.adam(0.1)), SlowMo(0.5)], ids=["adam", "slowmo"])
def test_state_stays_float32_for_bfloat16_parameters(aggregator, params, deltas):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    state = aggregator.init(params)
    with jax.numpy_dtype_promotion("standard"):
        update, after = aggregator.aggregate(deltas, state, params)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    assert {u.dtype for u in jax.tree.leaves(update)} == {jnp.dtype(jnp.bfloat16)}


def test_rounds_cannot_be_differentiated_backwards_and_that_is_said_by_name():
    unroll = TruncatedUnroll(Noisy(), ConstantHorizon(4), 2, inner_step=LocalRound(2, 2))
    with pytest.raises(ValueError, match="`unroll` must not have a `LocalRound`.*`PES`"):
        TruncatedBackprop(unroll)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    spread = dataclasses.replace(unroll, inner_step=sharding.WorkerSharded(LocalRound(2, 2), mesh))
    with pytest.raises(ValueError, match="`unroll` must not have a `WorkerSharded`.*`PES`"):
        TruncatedBackprop(spread)


@pytest.mark.parametrize("workers", [3, 10, 25])
def test_the_mean_of_the_largest_deltas_is_finite(workers):
    """A tenth of the largest number, ten times: rounded upwards, this would be infinite."""
    params, large = {"w": jnp.zeros(2)}, jnp.finfo(jnp.float32).max
    update, state = jax.jit(Mean().aggregate)({"w": jnp.full((workers, 2), -large)}, Mean().init(params), params)
    np.testing.assert_allclose(update["w"], -large, rtol=1e-6)
    assert state.used == 1.0


def test_rounds_without_workers_or_steps_are_refused():
    with pytest.raises(ValueError, match="`num_workers` must be at least 1, got 0"):
        LocalRound(0, 1)
    with pytest.raises(ValueError, match="`local_steps` must be at least 1, got 0"):
        LocalRound(1, 0)
    with pytest.raises(TypeError):
        LocalRound(1, 1.5)


def test_a_schedule_multiplies_each_round_but_those_without_workers():
    """Factors 1, 3/4, 1/2 and 1/4: the round without workers adds nothing, and does not count."""
    params, deltas = {"w": jnp.zeros(2)}, {"w": jnp.ones((WORKERS, 2))}
    aggregator = Scheduled(Mean(), OptaxSchedule(optax.linear_schedule, 1.0, 0.0, 4))
    state, found = aggregator.init(params), []
    for present in (True, False, True, True, True):
        update, state = aggregator.aggregate(deltas, state, params, present=jnp.full(WORKERS, present))
        found.append(float(update["w"][0]))
        assert float(state.used) == present
    assert found == [1.0, 0.0, 0.75, 0.5, 0.25]


def test_a_scheduled_aggregator_gets_the_length_of_training():
    aggregator = Scheduled(Mean(), WarmUpAndDecay(0.5, warm_up=0.0))
    update, _ = aggregator.aggregate(
        {"w": jnp.ones((WORKERS, 2))},
        aggregator.init({"w": jnp.zeros(2)}),
        {"w": jnp.zeros(2)},
        context=StepContext(num_steps=10),
    )
    assert_close(update["w"], jnp.full(2, 0.5))


NEEDS_LENGTH = OuterOptimizer(optimizers.Scheduled(optax.sgd(1.0), WarmUpAndDecay(0.5, warm_up=0.0)))


@pytest.mark.parametrize(
    "wrapper",
    [
        Scaled(NEEDS_LENGTH, {"w": 1.0}),
        Screened(NEEDS_LENGTH),
        Scheduled(NEEDS_LENGTH, OptaxSchedule(optax.constant_schedule, 1.0)),
    ],
    ids=lambda wrapper: type(wrapper).__name__,
)
def test_wrappers_tell_the_aggregator_the_length_of_training(wrapper):
    params = {"w": jnp.zeros(2)}
    update, _ = wrapper.aggregate(
        {"w": jnp.ones((WORKERS, 2))}, wrapper.init(params), params, context=StepContext(num_steps=10)
    )
    assert_close(update["w"], jnp.full(2, 0.5))
