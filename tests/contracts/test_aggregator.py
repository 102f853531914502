"""What every aggregator must do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, normal_tree

from lo_components import aggregators, recipes
from lo_components.aggregators import LearnedAggregator, Mean, OuterOptimizer, Scaled, Scheduled, Screened, SlowMo
from lo_components.schedules import OptaxSchedule

WORKERS = 3
SHAPES = {"w": (2, 3), "b": (), "empty": (0, 2)}
TABLE = {
    "Mean": Mean(),
    "SlowMo": SlowMo(0.5, 0.9),
    "OuterOptimizer": OuterOptimizer(optax.adam(0.1)),
    "LOpt": recipes.lopt(hidden_size=2, step_mult=0.1, key=jax.random.key(0)),
    "LAgg": recipes.lagg(WORKERS, hidden_size=2, step_mult=0.1, key=jax.random.key(0)),
    "Scaled": Scaled(SlowMo(0.5), {"w": 2.0, "b": 0.5, "empty": 1.0}),
    "Screened": Screened(Mean(), max_ratio=100.0),
    "Scheduled": Scheduled(SlowMo(0.5), OptaxSchedule(optax.linear_schedule, 1.0, 0.5, 10)),
}
every_aggregator = pytest.mark.parametrize("aggregator", TABLE.values(), ids=TABLE)

aggregate = eqx.filter_jit(lambda a, *args, **kwargs: a.aggregate(*args, **kwargs))


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def params():
    return normal_tree(SHAPES, jax.random.key(1))


@pytest.fixture
def deltas():
    return normal_tree({k: (WORKERS, *s) for k, s in SHAPES.items()}, jax.random.key(2))


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_table_holds_every_aggregator(concrete_classes):
    assert {type(a) for a in TABLE.values()} == concrete_classes(aggregators, aggregators.AbstractAggregator)
    assert isinstance(TABLE["LOpt"], LearnedAggregator)


@every_aggregator
def test_updates_are_like_params_and_states_keep_their_structure(aggregator, params, deltas):
    state = aggregator.init(params)
    update, new = aggregate(aggregator, deltas, state, params)
    assert _describe(update) == _describe(params)
    assert (jax.tree.structure(new), _describe(new)) == (jax.tree.structure(state), _describe(state))
    assert new.used == 1.0


@every_aggregator
def test_bfloat16_parameters_get_bfloat16_updates(aggregator, params, deltas):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    update, _ = jax.eval_shape(aggregator.aggregate, deltas, aggregator.init(params), params)
    assert _describe(update) == _describe(params)


@every_aggregator
def test_jit_equals_eager_and_numpy(aggregator, params, deltas):
    params, deltas = jax.tree.map(np.asarray, (params, deltas))
    state = aggregator.init(params)
    assert_close(aggregator.aggregate(deltas, state, params), aggregate(aggregator, deltas, state, params), rtol=1e-5)


@every_aggregator
def test_mapping_over_runs_equals_separate_runs(aggregator, params, deltas):
    run = lambda p: aggregator.aggregate(deltas, aggregator.init(p), p)[0]  # noqa: E731
    other = jax.tree.map(lambda x: 2.0 * x, params)
    mapped = jax.jit(jax.vmap(run))(jax.tree.map(lambda a, b: jnp.stack([a, b]), params, other))
    for i, p in enumerate((params, other)):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), jax.jit(run)(p), rtol=1e-5)


@every_aggregator
def test_an_absent_worker_a_non_finite_one_and_one_that_sends_the_mean_of_the_others_are_the_same(
    aggregator, params, deltas
):
    state = aggregator.init(params)
    present = jnp.array([True, False, True])
    expected, _ = aggregate(aggregator, jax.tree.map(lambda d: d.at[1].set((d[0] + d[2]) / 2), deltas), state, params)
    absent, after = aggregate(aggregator, deltas, state, params, present=present)
    assert_close(absent, expected, rtol=1e-4, atol=1e-6)
    assert after.used == np.float32(2 / 3)
    # One element of one leaf is enough: the worker's other leaves are not to be trusted either.
    for broken in (jnp.nan, jnp.inf):
        update, after = aggregate(aggregator, {**deltas, "b": deltas["b"].at[1].set(broken)}, state, params)
        assert_close(update, absent, rtol=1e-5, atol=1e-6)
        assert after.used == np.float32(2 / 3)


@every_aggregator
def test_a_round_that_can_use_no_worker_changes_nothing_and_says_so(aggregator, params, deltas):
    _, state = aggregate(aggregator, deltas, aggregator.init(params), params)
    broken = jax.tree.map(lambda d: d * jnp.nan, deltas)
    for given, present in ((deltas, jnp.zeros(WORKERS, bool)), (broken, None)):
        update, after = aggregate(aggregator, given, state, params, present=present)
        assert not any(jnp.any(u != 0) for u in jax.tree.leaves(update))
        assert_close(after.inner, state.inner, rtol=0, atol=0)
        assert after.used == 0.0


@every_aggregator
def test_who_is_present_is_not_traced_again(aggregator, params, deltas):
    traces = 0

    @eqx.filter_jit
    def round(state, present):
        nonlocal traces
        traces += 1
        return aggregator.aggregate(deltas, state, params, present=present)[1]

    state = round(aggregator.init(params), jnp.array([True, False, True]))
    round(state, jnp.array([True, True, True]))
    assert traces == 1


@every_aggregator
def test_wrong_deltas_are_refused(aggregator, params, deltas):
    state = aggregator.init(params)
    for wrong, message in (
        ({"w": deltas["w"]}, "`deltas` must have the structure of `params`"),
        (params, r"`deltas` must be `\[workers, \*shape\]`.*at `b` got \(\), expected \(workers\)"),
        ({**deltas, "w": deltas["w"][:2]}, r"at `w` got \(2, 2, 3\), expected \(3, 2, 3\)"),
        ({**deltas, "w": jnp.ones((3, 3, 2))}, r"at `w` got \(3, 3, 2\), expected \(3, 2, 3\)"),
        ({k: d[:0] for k, d in deltas.items()}, r"at `b` got \(0,\), expected \(workers\)"),
        ({**deltas, "b": jnp.arange(3)}, "`deltas` must be floating point: at `b` got int32"),
    ):
        with pytest.raises(ValueError, match=message):
            aggregator.aggregate(wrong, state, params)
    with pytest.raises(ValueError, match=r"`present` must have one entry per worker: got \(2,\), expected \(3,\)"):
        aggregator.aggregate(deltas, state, params, present=jnp.ones(2, bool))


@every_aggregator
def test_a_state_of_another_aggregator_is_refused_by_name(aggregator, params, deltas):
    foreign = aggregators.AggregatorState({"foreign": jnp.zeros(())}, jnp.ones(()))
    with pytest.raises(ValueError, match="`state` must come from `init` with parameters like these"):
        aggregator.aggregate(deltas, foreign, params)


def test_a_state_for_other_parameters_is_refused_by_name(params, deltas):
    other = {**params, "w": params["w"][:1]}
    with pytest.raises(
        ValueError, match=r"`state` must come from.*at `inner/w` got float32\(1, 3\), expected float32\(2, 3\)"
    ):
        SlowMo(0.5).aggregate(deltas, SlowMo(0.5).init(other), params)
    half = jax.tree.map(lambda x: x.astype(jnp.float16), SlowMo(0.5).init(params).inner)
    with pytest.raises(ValueError, match="`state` must come from.*got float16"):
        SlowMo(0.5).aggregate(deltas, aggregators.AggregatorState(half, jnp.ones(())), params)
