import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD
from meta_helpers import (
    START,
    Counting,
    Drift,
    Fragile,
    HashableList,
    Ignorant,
    Noisy,
    Remembering,
    as_numpy,
    assert_identical,
    quadratic_unroll,
)

from lo_components import aggregators, theta
from lo_components.estimators import (
    GPES,
    PES,
    CenteredRanks,
    ClippedDifference,
    Difference,
    ESSingle,
    Estimate,
    FullES,
    Mixture,
    PersistentNoise,
    SignOfDifference,
    TruncatedBackprop,
    TruncatedES,
    ZScores,
)
from lo_components.estimators._pairs import _difference
from lo_components.optimizers import Clipped, Scaled, StepContext
from lo_components.tasks import Quadratic
from lo_components.unroll import (
    AbstractMetaLoss,
    ConstantHorizon,
    FinalLoss,
    HorizonSchedule,
    LogLoss,
    LogUniformHorizon,
    MeanLoss,
    TelescopedLoss,
    TruncatedUnroll,
)

STEPS = 20
VELOCITY = np.array([0.3, 0.1, -0.2], np.float32)
# The parameters of step t are START + t * velocity, so the gradient of the mean over t of half their squared norm is
EXACT = np.mean([t * (START + t * VELOCITY) for t in range(STEPS)], axis=0)
LAST = (STEPS - 1) * (START + (STEPS - 1) * VELOCITY)


class Jump(Drift):
    """Sets the parameters to its learned constant at every step, so that a window does not depend on earlier ones."""

    def update(self, grads, state, params, *, context=StepContext()):
        return self.velocity - params, state + 1


class SquaredMean(AbstractMetaLoss):
    """The square of the mean loss of each window."""

    def __call__(self, losses, previous_loss, num_windows, last):
        return jnp.square(jnp.mean(losses))


class LogMean(AbstractMetaLoss):
    """The logarithm of the mean loss of each window."""

    def __call__(self, losses, previous_loss, num_windows, last):
        return jnp.log(jnp.mean(losses))


class NumberAbove(AbstractMetaLoss):
    """How many losses exceed a threshold: its derivative is zero."""

    def __call__(self, losses, previous_loss, num_windows, last):
        return jnp.sum(losses > 2.3, dtype=jnp.float32)


def mean_estimates(kind, windows, *, replicates, num_pairs=8, meta_loss=MeanLoss(), learner=Drift, **options):
    """`[replicates, 3]` estimates of `EXACT`, each averaged over the windows of one whole horizon.

    After as many windows again, in which the staggered first episodes end, every pair is in some window of a whole
    episode; the next `windows` windows then meet every window of the horizon once.
    """
    unroll = dataclasses.replace(quadratic_unroll(steps=STEPS, window=STEPS // windows), meta_loss=meta_loss)
    estimator = kind(unroll, num_pairs, **{"std": 0.1, **options})
    learner = learner(jnp.asarray(VELOCITY))

    def replicate(key):
        init_key, key = jax.random.split(key)

        def window(state, key):
            estimate, state = estimator.estimate(learner, state, key=key)
            return state, estimate.grad.velocity

        grads = jax.lax.scan(window, estimator.init(learner, key=init_key), jax.random.split(key, 2 * windows))[1]
        return jnp.mean(grads[windows:], axis=0)

    return np.asarray(jax.jit(jax.vmap(replicate))(jax.random.split(jax.random.key(20), replicates)), np.float64)


def mean_and_error(estimates):
    return estimates.mean(axis=0), estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates))


def test_with_random_horizons_windows_count_equally_and_so_long_episodes_count_more():
    """Full ES weighs episodes equally, the others by their length."""
    unroll = TruncatedUnroll(Quadratic(jnp.asarray(START)), LogUniformHorizon(5, 40), 5)

    def sample(key):
        return unroll.horizon.sample(5, windows_so_far=jnp.asarray(0), key=key)

    lengths = np.asarray(jax.vmap(sample)(jax.random.split(jax.random.key(1), 4000)))
    grads = {n: np.mean([t * (START + t * VELOCITY) for t in range(n)], axis=0) for n in np.unique(lengths)}
    each = np.array([grads[n] for n in lengths])
    expected = {FullES: each.mean(0), ESSingle: (lengths[:, None] * each).mean(0) / lengths.mean()}
    assert np.abs(expected[FullES] - expected[ESSingle]).max() > 10
    learner = Drift(jnp.asarray(VELOCITY))
    for kind, truth in expected.items():
        estimator = kind(unroll, 512, std=0.05)

        def window(state, key, estimator=estimator):
            estimate, state = estimator.estimate(learner, state, key=key)
            return state, estimate.grad.velocity

        state = init(estimator, learner, jax.random.key(0))
        scan = jax.jit(jax.lax.scan, static_argnums=0)
        found = np.asarray(scan(window, state, jax.random.split(jax.random.key(2), 60))[1])[20:]
        np.testing.assert_allclose(found.mean(0), truth, atol=0.1 * np.abs(truth).max())


def test_a_schedule_that_reaches_zero_gives_no_estimate_and_says_so():
    estimator = PES(quadratic_unroll(steps=20, window=5), 2, std=optax.linear_schedule(0.1, 0.0, 1))
    (first, second), (*_, state) = run(estimator, Drift(jnp.asarray(VELOCITY)), 2)
    assert (first.usable, second.usable) == (1.0, 0.0)
    assert not np.any(second.grad.velocity) and np.all(np.isfinite(state.noise.score.velocity))


UNBIASED = {
    "PES, 1 window": (PES, 1, {}),
    "PES, 10 windows": (PES, 10, {}),
    "PES, forward differences": (PES, 4, {"antithetic": False}),
    "PES, a std that shrinks": (PES, 4, {"std": optax.linear_schedule(0.3, 0.05, 8)}),
    "ES-Single, 10 windows": (ESSingle, 10, {}),
    "GPES, 10 windows": (GPES, 10, {"windows_per_draw": 4}),
    "GPES, a std that shrinks": (GPES, 4, {"windows_per_draw": 2, "std": optax.linear_schedule(0.3, 0.05, 8)}),
    "ES-Single, a std that shrinks": (ESSingle, 4, {"std": optax.linear_schedule(0.3, 0.05, 8)}),
    "full ES": (FullES, 4, {}),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_agree_with_the_gradient_of_the_mean_loss(name):
    kind, windows, options = UNBIASED[name]
    mean, error = mean_and_error(mean_estimates(kind, windows, replicates=2000, **options))
    assert np.all(error < 0.02 * np.abs(EXACT).max())  # precise enough to tell a factor of 1.1 apart
    np.testing.assert_array_less(np.abs(mean - EXACT), 4 * error)


@pytest.mark.parametrize("meta_loss, grows", [(FinalLoss(), True), (MeanLoss(), False)])
def test_the_variance_of_gpes_lies_between_those_of_pes_and_es_single(meta_loss, grows):
    """If a window does not depend on earlier ones, their noise in the score of the last window is nothing but variance.
    In the mean of all windows, independent noise averages out instead."""
    options = dict(replicates=3000, meta_loss=meta_loss, learner=Jump)
    kinds = [(PES, {}), (GPES, {"windows_per_draw": 5}), (ESSingle, {})]
    found = [mean_estimates(kind, 10, **options, **more) for kind, more in kinds]
    for estimates in found:
        mean, error = mean_and_error(estimates)
        exact = VELOCITY if grows else 0.95 * VELOCITY  # the first step has the loss of the start
        np.testing.assert_array_less(np.abs(mean - exact), 4 * error)
    # Of a coordinate whose estimates are normal, the logarithm of the variance has a standard error of sqrt(2 / n).
    logs = [np.log(estimates.var(axis=0, ddof=1)).mean() for estimates in found]
    steps = np.diff(logs) * (-1 if grows else 1)
    assert np.all(steps > 4 * math.sqrt(2 * 2 / 3000))


@pytest.mark.parametrize("windows_per_draw, same", [(1, PES), (4, ESSingle), (100, ESSingle)])
def test_gpes_has_pes_and_es_single_at_its_ends_bit_for_bit(windows_per_draw, same):
    unroll, learner = TruncatedUnroll(Noisy(), LogUniformHorizon(5, 20), 5), Drift(jnp.asarray(VELOCITY))
    found = run(GPES(unroll, 3, windows_per_draw=windows_per_draw), learner, 8)
    assert_identical(found, run(same(unroll, 3), learner, 8))
    between = run(GPES(unroll, 3, windows_per_draw=2), learner, 8)
    assert any(np.any(a.grad.velocity != b.grad.velocity) for a, b in zip(between[0], found[0], strict=True))


def test_noise_is_sampled_anew_every_few_windows_and_with_each_episode():
    estimator = GPES(quadratic_unroll(steps=25, window=5), num_pairs=6, windows_per_draw=2, std=0.1)
    _, states = run(estimator, Drift(jnp.asarray(VELOCITY)), 12)
    keys = [as_numpy(s.noise.key) for s in states]
    seen = set()
    for t, before in enumerate(states[:-1]):
        for pair, window in enumerate(np.asarray(before.inner.episode.window)):
            changed = bool(np.any(keys[t + 1][pair] != keys[t][pair]))
            assert changed == (window % 2 == 0)
            seen.add(int(window))
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("windows_per_draw", [0, -1])
def test_noise_for_less_than_a_window_is_refused(windows_per_draw):
    with pytest.raises(ValueError, match="`windows_per_draw` must be at least 1 or `None`"):
        GPES(quadratic_unroll(steps=10, window=5), windows_per_draw=windows_per_draw)
    with pytest.raises(TypeError, match="Expected a whole number, got 1.5"):
        PersistentNoise(1.5)


def smoothed_gradient(windows, std, draws):
    """Of the mean over windows of `SquaredMean`, in a velocity with independent noise in each of `draws`.

    The meta-loss is a polynomial of degree 4, of which the mean over Gaussian noise adds half the variance times the
    Laplacian and a constant.
    """

    def meta_loss(velocities):
        moves = jnp.repeat(velocities, STEPS // draws, axis=0)
        params = jnp.asarray(START)[None] + jnp.cumsum(moves, axis=0) - moves
        losses = 0.5 * jnp.sum(jnp.square(params), axis=1).reshape(windows, -1)
        return jnp.mean(jnp.square(jnp.mean(losses, axis=1)))

    def smoothed(velocity):
        velocities = jnp.tile(velocity, (draws, 1))
        hessian = jax.hessian(lambda flat: meta_loss(flat.reshape(draws, 3)))(velocities.ravel())
        return meta_loss(velocities) + 0.5 * std**2 * jnp.trace(hessian)

    return np.asarray(jax.grad(smoothed)(jnp.asarray(VELOCITY)), np.float64)


@pytest.mark.parametrize(
    "kind, windows, draws, options",
    [
        (PES, 4, 4, {}),
        (GPES, 4, 2, {"windows_per_draw": 2}),
        (ESSingle, 4, 1, {}),
        (FullES, 4, 1, {}),
        (TruncatedES, 1, 1, {}),
    ],
)
def test_a_nonlinear_meta_loss_is_applied_to_the_losses_of_each_member(kind, windows, draws, options):
    expected = smoothed_gradient(windows, 0.1, draws)
    found = mean_estimates(kind, windows, replicates=2000, meta_loss=SquaredMean(), **options)
    mean, error = mean_and_error(found)
    assert np.all(error < 0.05 * np.abs(expected).max())
    np.testing.assert_array_less(np.abs(mean - expected), 4 * error)


@pytest.mark.parametrize("meta_loss", [MeanLoss(), FinalLoss(), TelescopedLoss(), LogLoss(), SquaredMean(), LogMean()])
def test_equal_members_have_no_difference_whatever_the_meta_loss(meta_loss):
    unroll = dataclasses.replace(TruncatedUnroll(Noisy(), LogUniformHorizon(7, 21), 7), meta_loss=meta_loss)
    for kind in (PES, FullES):
        estimates, _ = run(kind(unroll, num_pairs=16), Ignorant(jnp.ones(2)), 3)
        for estimate in estimates:
            assert estimate.usable == 1.0
            np.testing.assert_array_equal(estimate.grad.unused, 0.0)


@pytest.mark.parametrize("meta_loss, exact", [(MeanLoss(), np.mean), (LogMean(), lambda x: np.log(np.mean(x)))])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-1, 10.0])
def test_differences_of_nearly_equal_losses_are_precise(meta_loss, exact, size):
    rng, window = np.random.default_rng(0), 50
    one = 2.3 + 0.1 * rng.standard_normal((200, window))
    losses = np.abs(np.stack([one, one + size * (1 + 0.3 * rng.standard_normal((200, window)))], axis=1))
    losses = losses.astype(np.float32)

    def difference(losses):
        def contribution(losses):
            return meta_loss(losses, jnp.float32(0.0), jnp.float32(1.0), jnp.asarray(False))

        values = jax.vmap(contribution)(losses)
        return _difference(contribution, values, (losses,)), values[0] - values[1]

    found, plain = jax.jit(jax.vmap(difference))(jnp.asarray(losses))
    true = np.array([exact(a) - exact(b) for a, b in losses.astype(np.float64)])
    error, plain_error = (np.max(np.abs(np.asarray(x) / true - 1)) for x in (found, plain))
    assert error < 3e-5 and error <= plain_error
    if size == 1e-5:
        assert error < 1e-6 and plain_error > 1e-3


def test_a_meta_loss_without_a_derivative_has_a_difference():
    losses = jnp.asarray([[2.2, 2.4, 2.5], [2.2, 2.1, 2.5]])
    contribution = lambda x: NumberAbove()(x, x[0], jnp.float32(1.0), jnp.asarray(False))  # noqa: E731
    assert _difference(contribution, jax.vmap(contribution)(losses), (losses,)) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_difference_that_is_not_finite_stays_so(bad):
    losses = jnp.asarray([[2.0, bad], [2.0, 1.0]], jnp.float32)
    for function in (jnp.mean, lambda x: jnp.exp(100 * x[0]) + 0 * x[1]):
        assert not np.isfinite(_difference(function, jax.vmap(function)(losses), (losses,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda unroll: PES(unroll, 4, std=0.01),
        lambda unroll: FullES(unroll, 4, std=0.01),
        lambda unroll: TruncatedBackprop(unroll, 4),
        lambda unroll: Mixture([PES(unroll, 4, std=0.01)]),
    ],
)
def test_estimates_report_the_loss_and_the_meta_loss(make):
    steps = dict(steps=20, window=20)
    losses = [0.5 * np.sum((START + t * VELOCITY) ** 2) for t in range(20)]
    for meta_loss, expected in ((FinalLoss(), losses[-1]), (TelescopedLoss(), losses[-1] - losses[0])):
        unroll = dataclasses.replace(quadratic_unroll(**steps), meta_loss=meta_loss)
        (estimate,), _ = run(make(unroll), Drift(jnp.asarray(VELOCITY)), 1)
        np.testing.assert_allclose(estimate.loss, np.mean(losses), rtol=0.05)
        np.testing.assert_allclose(estimate.meta_loss, expected, rtol=0.05)


def test_the_telescoped_loss_on_a_split_has_the_gradient_of_the_final_loss():
    """Losses are then taken after each update, but the loss of the initial parameters does not depend on theta."""
    unroll = quadratic_unroll(steps=STEPS, window=STEPS)
    for meta_loss in (FinalLoss(), TelescopedLoss()):
        estimator = TruncatedBackprop(dataclasses.replace(unroll, meta_loss=meta_loss, split="train"), 2)
        (estimate,), _ = run(estimator, Drift(jnp.asarray(VELOCITY)), 1)
        np.testing.assert_allclose(estimate.grad.velocity, STEPS * (START + STEPS * VELOCITY), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["step", "loss", "inner_steps", "seconds", "learning_rate", "steps_per_second"])
def test_a_diagnostic_called_like_a_column_of_the_log_is_refused(name):
    one = jnp.ones(())
    with pytest.raises(ValueError, match=f"must not have a `{name}`, which is another column of the log"):
        Estimate(one, one, one, one, one, jnp.asarray(1), {"mine": one, name: one})


def test_estimates_count_the_inner_steps_of_all_particles():
    learner, unroll = Drift(jnp.asarray(VELOCITY)), TruncatedUnroll(Noisy(), LogUniformHorizon(4, 40), 4)
    for estimator, steps in (
        (PES(unroll, 3), 2 * 3 * 4),
        (Mixture([PES(unroll, 3), TruncatedBackprop(unroll, 5)]), 24 + 20),
    ):
        assert [int(e.inner_steps) for e in run(estimator, learner, 2)[0]] == [steps, steps]
    # An episode of full ES has its own length; with one pair it is the sum of both members.
    lengths = {int(e.inner_steps) // 2 for e in run(FullES(unroll, 1), learner, 20)[0]}
    assert lengths <= set(range(4, 41, 4)) and len(lengths) > 3
    constant = run(FullES(quadratic_unroll(steps=12, window=5), 2), learner, 1)[0][0]
    assert constant.inner_steps == 2 * 2 * 15


@pytest.mark.parametrize("make", [PES, FullES, TruncatedBackprop, lambda unroll, n: Mixture([PES(unroll, n)])])
def test_a_schedule_of_horizons_counts_estimates(make):
    learner = Drift(jnp.asarray(VELOCITY))
    unroll = TruncatedUnroll(Quadratic(jnp.asarray(START)), HorizonSchedule((0, 5), (2, 10), (4, 20)), 5)
    estimates, _ = run(make(unroll, 2), learner, 8)
    restarts = [float(next(v for n, v in e.diagnostics.items() if "restarts" in n)) for e in estimates]
    if make is FullES:
        assert [int(e.inner_steps) for e in estimates] == [20, 20, 40, 40, 80, 80, 80, 80]
    else:
        assert restarts == [1, 1, 0, 1, 0, 0, 0, 1]


def test_another_schedule_of_horizons_compiles_nothing():
    learner = Counting(jnp.asarray(0.1), HashableList())
    for start, steps in ((1, 10), (2, 10), (2, 20)):
        horizon = HorizonSchedule((0, 5), (start, steps))
        run(PES(TruncatedUnroll(Quadratic(jnp.asarray(START)), horizon, 5), 2), learner, 2)
        if start == 1:
            assert learner.traces
            learner.traces.clear()
    assert not learner.traces


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("meta_loss", [MeanLoss(), FinalLoss(), TelescopedLoss(), LogLoss()])
def test_estimates_make_no_nan_that_the_debugger_of_jax_would_stop_at(meta_loss, split, pairs):
    unroll = TruncatedUnroll(Noisy(), 10, 5, meta_loss=meta_loss, split=split)
    with jax.debug_nans(True):
        for estimator in (PES(unroll, pairs), FullES(unroll, pairs)):
            estimates, _ = run(estimator, Drift(jnp.asarray(VELOCITY)), 3)
            assert np.all(np.isfinite(estimates[-1].grad.velocity))


@pytest.mark.parametrize("meta_loss", [FinalLoss(), TelescopedLoss()])
@pytest.mark.parametrize("kind", [PES, ESSingle])
def test_the_final_loss_and_its_telescoped_form_have_one_gradient(kind, meta_loss):
    mean, error = mean_and_error(mean_estimates(kind, 4, replicates=4000, meta_loss=meta_loss))
    assert np.all(error < 0.05 * np.abs(LAST).max())
    np.testing.assert_array_less(np.abs(mean - LAST), 4 * error)


@pytest.mark.parametrize("windows", [1, 4])
def test_backpropagation_is_exact_in_its_window(windows):
    """With one window it is the gradient; with more it is what each window owes to its own parameters."""
    window = STEPS // windows
    expected = np.mean([(t % window) * (START + t * VELOCITY) for t in range(STEPS)], axis=0)
    assert (windows == 1) == np.allclose(expected, EXACT)
    estimates = mean_estimates(lambda unroll, n, std: TruncatedBackprop(unroll, n), windows, replicates=2, num_pairs=2)
    np.testing.assert_allclose(estimates, [expected] * 2, rtol=1e-5)


def test_backpropagation_leaves_out_particles_whose_gradient_is_not_finite_and_reports_them():
    class Fading(Drift):
        """Its gradient is infinite where it stops."""

        def update(self, grads, state, params, *, context=StepContext()):
            return jnp.sqrt(jnp.maximum(self.velocity, 0.0)) * params, state

    unroll = TruncatedUnroll(Noisy(), ConstantHorizon(10), 5)
    estimator = TruncatedBackprop(unroll, 3)
    (estimate,), _ = run(estimator, Fading(jnp.zeros(3)), 1)
    assert estimate.usable == 0.0 and not np.any(estimate.grad.velocity)
    (estimate,), _ = run(estimator, Fading(jnp.ones(3)), 1)
    assert estimate.usable == 1.0 and np.all(np.isfinite(estimate.grad.velocity))


@pytest.fixture(scope="module")
def truncated_estimates():
    return mean_estimates(TruncatedES, 10, replicates=2000)


def test_truncated_es_with_many_windows_is_biased_and_the_test_tells(truncated_estimates):
    mean, error = mean_and_error(truncated_estimates)
    assert np.all(np.abs(mean - EXACT) > 4 * error)


def test_truncated_es_estimates_what_each_window_owes_to_its_own_parameters(truncated_estimates):
    window = STEPS // 10
    own = np.mean([(t % window) * (START + t * VELOCITY) for t in range(STEPS)], axis=0)
    mean, error = mean_and_error(truncated_estimates)
    np.testing.assert_array_less(np.abs(mean - own), 4 * error)


def test_with_one_window_per_horizon_truncated_es_and_es_single_are_pes():
    pes, es, single = (mean_estimates(kind, 1, replicates=8) for kind in (PES, TruncatedES, ESSingle))
    assert np.all(pes != 0)
    np.testing.assert_array_equal(es, pes)
    np.testing.assert_allclose(single, pes, rtol=2e-5)  # its std is carried, so that the compiler divides differently


@eqx.filter_jit
def init(estimator, learner, key):
    return estimator.init(learner, key=key)


@eqx.filter_jit
def estimate(estimator, learner, state, key):
    return estimator.estimate(learner, state, key=key)


def run(estimator, learner, windows, *, key=0):
    """The estimates and states of the first few windows."""
    init_key, key = jax.random.split(jax.random.key(key))
    state = init(estimator, learner, init_key)
    states, estimates = [state], []
    for window_key in jax.random.split(key, windows):
        result, state = estimate(estimator, learner, state, window_key)
        estimates.append(result)
        states.append(state)
    return estimates, states


def test_pes_weighs_the_noise_sum_by_the_loss_difference():
    window, std = 5, 0.1
    estimator = PES(quadratic_unroll(steps=10_000, window=window), num_pairs=4, std=std)
    estimates, states = run(estimator, Drift(jnp.asarray(VELOCITY)), 3)
    assert not np.any(states[-1].inner.episode.done)
    start = np.tile(START.astype(np.float64), (2, 4, 1))
    for i in range(3):
        before, after = (std**2 * np.asarray(s.noise.score.velocity, np.float64) for s in states[i : i + 2])
        velocity = VELOCITY + np.stack([after - before, before - after])
        losses = np.mean([0.5 * np.sum((start + t * velocity) ** 2, axis=2) for t in range(window)], axis=0)
        expected = np.mean(((losses[0] - losses[1]) / (2 * std**2))[:, None] * after, axis=0)
        np.testing.assert_allclose(estimates[i].grad.velocity, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(estimates[i].loss, losses.mean(), rtol=1e-5)
        start = start + window * velocity
        np.testing.assert_allclose(np.moveaxis(states[i + 1].inner.train.params, 1, 0), start, rtol=1e-5, atol=1e-5)


def test_noise_has_the_given_deviation_and_its_sum_restarts_with_the_episode():
    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=2000, std=0.3)
    _, states = run(estimator, Drift(jnp.asarray(VELOCITY)), 3)
    assert not np.any(states[0].noise.score.velocity)
    for before, state in zip(states, states[1:], strict=False):
        new, noise = np.asarray(before.inner.episode.done), 0.3**2 * np.asarray(state.noise.score.velocity)
        assert 800 < new.sum() < 1200 or before is states[0]
        # One window has passed since the last restart, or two.
        for windows, some in ((1, noise[new]), (2, noise[~new])) if before is not states[0] else ((1, noise),):
            expected = 0.3 * math.sqrt(windows)
            assert abs(some.std() - expected) < 4 * expected / math.sqrt(2 * some.size)


def test_noise_is_drawn_anew_in_every_window_and_for_every_pair():
    _, states = run(PES(quadratic_unroll(steps=10_000, window=5), num_pairs=4), Drift(jnp.asarray(VELOCITY)), 3)
    sums = [np.asarray(s.noise.score.velocity) for s in states]
    noise = np.stack([b - a for a, b in zip(sums, sums[1:], strict=False)])
    assert np.min(np.abs(noise[:, :, None] - noise[:, None, :])[:, ~np.eye(4, dtype=bool)]) > 0
    assert np.min(np.abs(noise[1:] - noise[:-1])) > 1e-5


@pytest.mark.parametrize("kind", [PES, TruncatedES])
def test_members_of_a_pair_share_everything_but_their_noise(kind):
    unroll = TruncatedUnroll(Noisy(), LogUniformHorizon(5, 15), 5)
    estimates, states = run(kind(unroll, num_pairs=4), Ignorant(jnp.ones(2)), 6)
    inners = [s.inner for s in states]
    assert sum(int(np.sum(s.episode.done)) for s in inners[:-1]) > 4
    for estimate, inner in zip(estimates, inners[1:], strict=True):
        np.testing.assert_array_equal(estimate.grad.unused, 0.0)
        np.testing.assert_array_equal(inner.train.params[:, 0], inner.train.params[:, 1])
        assert inner.episode.step.shape == inner.episode.horizon.shape == inner.episode.done.shape == (4,)
        assert len(np.unique(inner.train.params[:, 0, 0])) == 4


def test_a_restarted_member_starts_with_the_perturbed_learner_of_its_window():
    memory = np.array([5.0, -7.0], np.float32)
    _, states = run(
        PES(quadratic_unroll(steps=10, window=5), num_pairs=8, std=0.3), Remembering(jnp.asarray(memory)), 5
    )
    restarts = 0
    for before, after in zip(states[1:], states[2:], strict=False):
        plus, minus = np.moveaxis(np.asarray(after.inner.train.learner_state), 1, 0)
        new = np.asarray(before.inner.episode.done)
        noise = 0.3**2 * np.asarray(after.noise.score.memory)
        np.testing.assert_allclose(plus[new], memory + noise[new], rtol=1e-6)
        np.testing.assert_allclose(minus[new], memory - noise[new], rtol=1e-6)
        np.testing.assert_array_equal(after.inner.train.learner_state[~new], before.inner.train.learner_state[~new])
        restarts += new.sum()
    assert restarts == 16


@pytest.mark.parametrize("kind", [PES, TruncatedES])
def test_a_pairs_noise_and_data_do_not_depend_on_how_many_there_are(kind):
    unroll, learner = TruncatedUnroll(Noisy(), LogUniformHorizon(5, 15), 5), Drift(jnp.asarray(VELOCITY))
    (_, few), (_, many) = (run(kind(unroll, num_pairs=n), learner, 3) for n in (2, 4))
    for a, b in zip(few, many, strict=True):
        a, b = (jax.tree.map(as_numpy, (s.inner, s.noise)) for s in (a, b))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[:2], rtol=1e-6, atol=1e-7), a, b)


def test_an_estimate_is_a_function_of_the_key():
    estimator, learner = (
        PES(TruncatedUnroll(Noisy(), ConstantHorizon(10), 5), num_pairs=2),
        Drift(jnp.asarray(VELOCITY)),
    )
    first, again, other = (run(estimator, learner, 2, key=key)[0][-1] for key in (1, 1, 2))
    assert_identical(again, first)
    assert not np.any(np.asarray(other.grad.velocity) == np.asarray(first.grad.velocity))


def test_pairs_that_become_non_finite_are_left_out_where_losses_have_no_maximum():
    window, std = 5, 0.1
    estimator = PES(quadratic_unroll(steps=10_000, window=window), num_pairs=64, std=std)
    (estimate,), (_, state) = run(estimator, Fragile(jnp.asarray(0.0), limit=std), 1)
    kept = ~np.asarray(state.inner.episode.done)
    assert 32 < kept.sum() < 54  # two thirds are expected
    np.testing.assert_allclose(estimate.usable, kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(estimate.finite, (1 + kept.mean()) / 2, rtol=1e-6)  # one member of a pair fails
    np.testing.assert_allclose(estimate.diagnostics["restarts"], 1 - kept.mean(), rtol=1e-5)
    noise = std**2 * np.asarray(state.noise.score.velocity, np.float64)[kept]
    assert np.all(np.abs(noise) <= std)
    # On START + t * (+-noise) the difference of losses is the part odd in the noise.
    difference = 2 * np.mean(range(window)) * START.sum() * noise
    np.testing.assert_allclose(estimate.grad.velocity, np.mean(difference / (2 * std**2) * noise), rtol=1e-3)


def test_a_pair_restarts_together_where_one_member_fails():
    estimator = PES(quadratic_unroll(steps=10_000, window=5, max_loss=7.0), num_pairs=64, std=0.1)
    (first, _), (_, one, two) = run(estimator, Fragile(jnp.asarray(0.0), limit=0.1), 2)
    failed = np.asarray(one.inner.episode.done)
    one_sided = failed & np.any(np.all(np.isfinite(one.inner.train.params), axis=2), axis=1)
    assert one_sided.sum() == failed.sum() > 8
    np.testing.assert_array_equal(np.asarray(two.inner.episode.step)[failed], 5)
    assert np.all(np.isfinite(first.loss)) and np.isfinite(first.grad.velocity)


def test_if_every_pair_fails_the_gradient_is_zero_and_no_particle_is_finite():
    estimator = PES(quadratic_unroll(steps=10_000, window=5), num_pairs=2, std=0.1)
    (estimate,), _ = run(estimator, Fragile(jnp.asarray(0.0), limit=-math.inf), 1)
    assert estimate.finite == 0.0 and estimate.grad.velocity == 0.0


@pytest.mark.parametrize("make", [PES, ESSingle, FullES, TruncatedBackprop])
def test_a_learner_may_have_no_state(make):
    class Stateless(Drift):
        def init(self, params):
            return None

        def update(self, grads, state, params, *, context=StepContext()):
            return self.velocity, None

    (_, with_state), _ = run(make(quadratic_unroll(steps=10, window=5), 2), Drift(jnp.asarray(VELOCITY)), 2)
    (_, without), _ = run(make(quadratic_unroll(steps=10, window=5), 2), Stateless(jnp.asarray(VELOCITY)), 2)
    np.testing.assert_array_equal(without.grad.velocity, with_state.grad.velocity)


def test_floats_as_scales_are_constants():
    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    learner = Scaled(Drift(jnp.asarray(VELOCITY)), 0.0)
    (estimate, _), (*_, state) = run(estimator, learner, 2)
    assert len(jax.tree.leaves(estimate.grad)) == 1
    np.testing.assert_array_equal(state.inner.train.params, np.tile(START, (2, 2, 1)))


def test_constants_of_the_learner_have_no_gradient_and_dtypes_are_kept():
    learner = (Drift(jnp.asarray(VELOCITY)), jnp.asarray(0.5, jnp.bfloat16), jnp.arange(3), 0.1, "text")

    class First(Drift):
        parts: tuple

        def update(self, grads, state, params, **context):
            return self.parts[0].update(grads, state, params, **context)

    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    (estimate,), (_, state) = run(estimator, First(jnp.zeros(1), learner), 1)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(estimate.grad)] == [
        ((1,), jnp.float32),
        ((3,), jnp.float32),
        ((), jnp.bfloat16),
    ]
    assert jax.tree.structure(state.noise.score) == jax.tree.structure(estimate.grad)


@pytest.mark.parametrize("kind", [PES, TruncatedES])
@pytest.mark.parametrize("options", [{"num_pairs": 0}, {"std": 0.0}, {"std": -1.0}, {"std": math.nan}])
def test_impossible_options_are_refused(kind, options):
    with pytest.raises(ValueError, match="`num_pairs` must be at least 1 and `std` positive"):
        kind(quadratic_unroll(steps=10, window=5), **options)


def test_estimates_do_not_retrace():
    learner = Counting(jnp.asarray(0.1), HashableList())
    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    run(estimator, learner, 1)
    assert learner.traces
    learner.traces.clear()
    run(estimator, learner, 20)
    assert not learner.traces


def test_another_std_or_horizon_compiles_nothing():
    learner = Counting(jnp.asarray(0.1), HashableList())
    for std, steps in ((0.1, 10), (0.2, 10), (0.1, 20)):
        estimates, states = run(PES(quadratic_unroll(steps=steps, window=5), num_pairs=2, std=std), learner, 2)
        if steps == 10 and std == 0.1:
            assert learner.traces
            learner.traces.clear()
        np.testing.assert_array_equal(states[-1].inner.episode.horizon, steps)
    assert not learner.traces


def test_es_single_keeps_its_noise_until_the_episode_ends_whatever_the_schedule():
    estimator = ESSingle(
        quadratic_unroll(steps=20, window=5), num_pairs=8, std=lambda t: 0.1 * (1.0 + t.astype(jnp.float32))
    )
    _, states = run(estimator, Drift(jnp.asarray(VELOCITY)), 6)
    stds = [np.asarray(s.noise.std) for s in states]
    noise = [std[:, None] ** 2 * np.asarray(s.noise.score.velocity) for std, s in zip(stds, states, strict=True)]
    kept = 0
    for t, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        new = np.asarray(before.inner.episode.window) == 0
        assert new.all() if t == 0 else np.array_equal(new, before.inner.episode.done)
        np.testing.assert_array_equal(noise[t + 1][~new], noise[t][~new])
        np.testing.assert_array_equal(stds[t + 1][~new], stds[t][~new])
        np.testing.assert_allclose(stds[t + 1][new], 0.1 * (1 + t), rtol=1e-6)
        assert np.all(noise[t + 1][new] != noise[t][new])
        moved = np.asarray(after.inner.train.params[:, 0]) - np.where(
            new[:, None], START, before.inner.train.params[:, 0]
        )
        np.testing.assert_allclose(moved, 5 * (VELOCITY + noise[t + 1]), rtol=1e-4, atol=1e-5)
        kept += (~new).sum()
    assert kept > 20


def test_an_unperturbed_counterpart_trains_with_theta_itself():
    estimator = PES(quadratic_unroll(steps=10_000, window=5), num_pairs=3, std=0.1, antithetic=False)
    _, states = run(estimator, Drift(jnp.asarray(VELOCITY)), 2)
    np.testing.assert_allclose(states[-1].inner.train.params[:, 1], np.tile(START + 10 * VELOCITY, (3, 1)), rtol=1e-6)
    assert np.all(states[-1].inner.train.params[:, 0] != states[-1].inner.train.params[:, 1])


LOSSES = np.array([[3.0, 1.0], [2.0, 2.5], [np.nan, 0.0], [0.5, 0.5]], np.float32)
USABLE = np.array([True, True, False, True])


@pytest.mark.parametrize(
    "shaping, expected",
    [
        (Difference(), [2.0, -0.5, 0.0]),
        (ClippedDifference(1.0), [1.0, -0.5, 0.0]),
        (SignOfDifference(0.3), [0.3, -0.3, 0.0]),
        (CenteredRanks(), [(5 - 2) / 5, (3 - 4) / 5, 0.0]),
        (ZScores(), np.array([2.0, -0.5, 0.0]) / np.std([3.0, 1.0, 2.0, 2.5, 0.5, 0.5])),
    ],
)
def test_shaping(shaping, expected):
    differences = jnp.asarray(LOSSES[:, 0] - LOSSES[:, 1])
    shaped = eqx.filter_jit(shaping)(differences, jnp.asarray(LOSSES), jnp.asarray(USABLE))
    np.testing.assert_allclose(np.asarray(shaped)[USABLE], expected, rtol=1e-5, atol=1e-7)


def test_shaping_weighs_pairs_and_diagnostics_say_how_often_it_reduced_a_difference():
    unroll, learner = quadratic_unroll(steps=10_000, window=5), Drift(jnp.asarray(VELOCITY))
    (plain,), (_, state) = run(TruncatedES(unroll, num_pairs=16, std=0.1), learner, 1)
    assert plain.diagnostics["reduced_differences"] == 0.0
    clipped = TruncatedES(unroll, num_pairs=16, std=0.1, shaping=ClippedDifference(0.5))
    (estimate,), _ = run(clipped, learner, 1)
    plus, minus = np.moveaxis(np.asarray(state.inner.train.params, np.float64), 1, 0)
    noise = (plus - minus) / 10
    losses = [
        np.mean([0.5 * np.sum((START + t * (VELOCITY + s * noise)) ** 2, 1) for t in range(5)], 0) for s in (1, -1)
    ]
    difference = losses[0] - losses[1]
    assert 0 < np.mean(np.abs(difference) > 0.5) < 1
    expected = np.mean(np.clip(difference, -0.5, 0.5)[:, None] * noise / (2 * 0.1**2), axis=0)
    np.testing.assert_allclose(estimate.grad.velocity, expected, rtol=1e-3)
    np.testing.assert_allclose(estimate.diagnostics["reduced_differences"], np.mean(np.abs(difference) > 0.5))


def test_the_reported_variance_is_that_of_the_estimate():
    estimator = TruncatedES(quadratic_unroll(steps=5, window=5), num_pairs=16, std=0.1)
    estimates, _ = run(estimator, Drift(jnp.asarray(VELOCITY)), 400)
    grads = np.stack([e.grad.velocity for e in estimates])
    variance = np.var(grads, axis=0, ddof=1).sum()
    np.testing.assert_allclose(np.mean([e.diagnostics["variance"] for e in estimates]), variance, rtol=0.25)
    signal = np.sum(np.mean(grads, axis=0) ** 2)
    np.testing.assert_allclose(np.mean([e.diagnostics["signal"] for e in estimates]), signal, rtol=0.25)


def test_pairs_with_a_member_that_failed_can_be_left_out():
    unroll = quadratic_unroll(steps=10_000, window=5, max_loss=7.0)
    learner = Fragile(jnp.asarray(0.0), limit=0.1)
    (counted,), (_, state) = run(PES(unroll, num_pairs=64, std=0.1), learner, 1)
    (left_out,), _ = run(PES(unroll, num_pairs=64, std=0.1, leave_out_non_finite=True), learner, 1)
    failed = np.mean(np.asarray(state.inner.episode.done))
    assert counted.usable == 1.0 and 0.1 < failed < 0.6
    np.testing.assert_allclose(left_out.usable, 1 - failed, rtol=1e-6)
    np.testing.assert_allclose(counted.diagnostics["clipped_losses"], failed * 0.5 * 4 / 5, rtol=1e-5)
    assert abs(left_out.grad.velocity) < abs(counted.grad.velocity)


def test_a_mixture_is_the_weighted_mean_of_its_estimators():
    learner = Drift(jnp.asarray(VELOCITY))
    parts = [
        PES(quadratic_unroll(steps=10, window=5), num_pairs=2),
        TruncatedBackprop(quadratic_unroll(steps=4, window=2), 2),
    ]
    mixture = Mixture(parts, weights=(3, 1), names=("long", "short"))
    (_, mixed), states = run(mixture, learner, 2)
    key = jax.random.split(jax.random.split(jax.random.key(0))[1], 2)[1]
    alone = [
        estimate(part, learner, state, k)[0]
        for part, state, k in zip(parts, states[1], jax.random.split(key, 2), strict=True)
    ]
    expected = 0.75 * np.asarray(alone[0].grad.velocity) + 0.25 * np.asarray(alone[1].grad.velocity)
    np.testing.assert_allclose(mixed.grad.velocity, expected, rtol=1e-5)
    np.testing.assert_allclose(mixed.loss, 0.75 * alone[0].loss + 0.25 * alone[1].loss, rtol=1e-5)
    np.testing.assert_allclose(mixed.diagnostics["short: loss"], alone[1].loss, rtol=1e-5)
    np.testing.assert_allclose(mixed.diagnostics["long: grad_norm"], np.linalg.norm(alone[0].grad.velocity), rtol=1e-5)
    normalized = Mixture(parts, normalize=True)
    (_, mixed), _ = run(normalized, learner, 2)
    directions = [np.asarray(e.grad.velocity) / np.linalg.norm(e.grad.velocity) for e in alone]
    np.testing.assert_allclose(mixed.grad.velocity, np.mean(directions, axis=0), rtol=1e-4)


def test_impossible_mixtures_are_refused():
    part = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    for options, message in [
        ({"estimators": ()}, "`estimators` must have at least one"),
        ({"estimators": (part,), "weights": (1.0, 2.0)}, "`weights` and `names` must have one entry per estimator"),
        ({"estimators": (part, part), "names": ("a", "a")}, "names must differ"),
        ({"estimators": (part,), "weights": (0.0,)}, "`weights` must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            Mixture(**options)


@pytest.mark.parametrize("make", [PES, TruncatedBackprop])
def test_scales_that_are_arrays_are_not_perturbed(make):
    """Of an optimizer and of an aggregator: the estimate is that with numbers as scales."""
    rate = SGD(jnp.asarray(0.1, jnp.float32))
    estimator, key = make(quadratic_unroll(steps=10, window=5), 4), jax.random.key(0)
    estimates = []
    for scale in (0.5, jnp.asarray(0.5, jnp.float32)):
        learner = Scaled(Clipped(Scaled(rate, scale), 1e6), scale)
        estimates.append(estimator.estimate(learner, estimator.init(learner, key=key), key=key)[0])
        assert len(jax.tree.leaves(estimates[-1].grad)) == 1
    np.testing.assert_allclose(*(jax.tree.leaves(e.grad)[0] for e in estimates), rtol=1e-6)
    numbers, arrays = (
        aggregators.Scaled(aggregators.SlowMo(jnp.asarray(0.5)), scale) for scale in (0.5, jnp.asarray(0.5))
    )
    assert jax.tree.structure(theta(numbers).aggregator) == jax.tree.structure(theta(arrays).aggregator)
    assert len(jax.tree.leaves(theta(arrays))) == len(jax.tree.leaves(theta(numbers))) == 1
