"""Summaries and loss buffers against their formulas in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components.accumulators import FirstMoment, SecondMoment
from lo_components.controllers import MomentSummary, NormSummary, ScaleController, SignalSummary
from lo_components.schedules import LossBuffer, Progress, WarmUpAndDecay

RNG = np.random.default_rng(0)
PARAM, GRAD = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
M, V = RNG.normal(size=(3, 4, 3)).astype(np.float32), RNG.uniform(size=(1, 4, 3)).astype(np.float32)


def view(param=PARAM, grad=GRAD, m=M, v=V, **known):
    stats = FirstMoment(jnp.asarray(m)), SecondMoment(jnp.asarray(v))
    seen = view_of(grad, jnp.asarray(param), **known)
    return type(seen)(seen.param, seen.grad, stats, seen.step, size=seen.size, counted=seen.counted)


def log10x(x):
    return 0.5 * np.clip(np.log(1e-8 + np.abs(10.0 * x)), -5.0, 5.0)


def test_the_summary_of_moments():
    scale = np.mean(PARAM**2) ** -0.5
    m, v = scale * M, scale * V[0]
    means = m.mean((1, 2), keepdims=True)
    expected = [log10x(v.mean()), 0, 0, 1, 0, 0]
    expected += [*log10x(((m - means) ** 2).mean((1, 2))), *log10x(((v - means) ** 2).mean((1, 2)))]
    np.testing.assert_allclose(MomentSummary()(view()), expected, rtol=1e-5)


def test_parameters_of_zeros_are_scaled_up_to_a_limit():
    limit = (1e-9) ** -0.5
    found = MomentSummary()(view(np.zeros((4, 3), np.float32), v=1e-8 * V))
    np.testing.assert_allclose(found[0], log10x(limit * 1e-8 * V.mean()), rtol=1e-5)


def test_the_summary_of_norms():
    log = lambda x: np.clip(np.log(1e-8 + np.abs(x)), -5.0, 5.0)  # noqa: E731
    norm = np.linalg.norm(PARAM)
    expected = [log(np.linalg.norm(GRAD))]
    for x in (M, V, PARAM):
        expected += [log(x.mean()), np.sign(x.mean())]
    expected += [log(norm), *(log(x.var()) for x in (M, V, PARAM)), np.log(norm + 1e-8)]
    np.testing.assert_allclose(NormSummary()(view()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("summary", [MomentSummary(), NormSummary(), SignalSummary(3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("length", [1, 5])
def test_padding_does_not_count(summary, length):
    alone = [x.reshape(*x.shape[:-2], -1)[..., :length] for x in (PARAM, GRAD, M, V)]
    padded = [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 9 - length)]) for x in alone]
    known = {"size": jnp.asarray(length), "counted": jnp.arange(9) < length}
    np.testing.assert_allclose(summary(view(*padded, **known)), summary(view(*alone)), rtol=1e-5, atol=1e-6)


def test_the_summary_of_signal_and_noise():
    expected = [0.0, *np.clip(0.5 * np.log((M**2).mean((1, 2)) / V.mean()), -4.0, 1.0)]
    np.testing.assert_allclose(SignalSummary(3)(view()), expected, rtol=1e-5)
    np.testing.assert_allclose(SignalSummary(3)(view(m=1e-6 * M, v=1e-12 * V)), expected, rtol=1e-4)
    np.testing.assert_array_equal(SignalSummary(3)(view(m=0 * M, v=0 * V)), 0.0)
    of_vector = SignalSummary(3)(view(*(x[..., 0, :] for x in (PARAM, GRAD, M, V))))
    assert of_vector[0] == 1.0


def test_scales_are_one_at_first_and_then_follow_the_formula():
    controller = ScaleController(4, hidden_size=3, limit=0.7, key=jax.random.key(0))
    summaries = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    progress = Progress(jnp.asarray(3), num_steps=jnp.asarray(10))
    factors, state = controller(summaries, controller.init(5), progress)
    np.testing.assert_array_equal(factors, np.ones((5, 1)))
    assert state == ()
    normal = lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32)  # noqa: E731
    learned = jax.tree.map(normal, controller, is_leaf=eqx.is_array)
    time = np.tanh(10 * (0.3 - np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])))
    x = np.concatenate([np.tile(time, (5, 1)), summaries], axis=1)
    affine = lambda part, x: x @ np.asarray(part.weight) + np.asarray(part.bias)  # noqa: E731
    y = affine(learned.skip, x) + affine(learned.readout, np.maximum(0.0, affine(learned.hidden, x)))
    np.testing.assert_allclose(learned(summaries, (), progress)[0], np.exp(0.7 * np.tanh(y / 0.7)), rtol=1e-4)


def features(losses, num_steps=100):
    buffer = LossBuffer()
    state, found = buffer.init(), []
    for t, loss in enumerate(losses):
        row, state = buffer(state, Progress(jnp.asarray(t), jnp.float32(loss), jnp.asarray(num_steps)))
        found.append(np.asarray(row))
    return np.stack(found)


def test_falling_losses_give_minus_one_and_the_first_two_steps_zero():
    found = features(np.linspace(2.0, 1.0, 20))
    np.testing.assert_array_equal(found[:2], 0.0)
    np.testing.assert_allclose(found[2:], -1.0)


def test_rising_losses_are_told_from_falling_ones_and_spikes_are_cut():
    falling, rising = features([2.0, 1.0, 0.9, 0.8]), features([2.0, 1.0, 0.9, 1.5])
    assert np.all(rising[-1] > falling[-1])
    np.testing.assert_array_equal(features([1.0, 1.0, 1.0, 1e30]), features([1.0, 1.0, 1.0, 1e9]))


def test_the_denominator_has_a_floor_of_1e_8():
    """Losses of order 1e-7 rise: differences of averages lie between the floor and a floor that is too high."""
    found = features([1e-7, 1e-7, 1e-7, 1.5e-7, 2e-7])
    assert np.all(np.abs(found[-1]) < 0.9)


@pytest.mark.parametrize("missing", ["loss", "num_steps"])
def test_what_is_missing_is_named(missing):
    known = {"loss": jnp.float32(1.0), "num_steps": jnp.asarray(10)}
    known[missing] = None
    with pytest.raises(ValueError, match=f"A schedule needs `{missing}`"):
        LossBuffer()(LossBuffer().init(), Progress(jnp.asarray(0), **known))


def test_means_of_broadcast_channels_are_those_of_tiled_ones():
    rows = jnp.asarray(M[:, :, :1])
    np.testing.assert_allclose(view().means(rows), M[:, :, 0].mean(1), rtol=1e-4)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (1, 0.2), (2, 0.2), (11, 0.1), (19, 0.2 / 18), (30, 0.0)])
def test_warm_up_and_decay_are_linear(step, factor):
    schedule = WarmUpAndDecay(0.2, 0.1)
    value, _ = schedule(schedule.init(), Progress(jnp.asarray(step), num_steps=jnp.asarray(20)))
    np.testing.assert_allclose(value, factor, rtol=1e-6)


@pytest.mark.parametrize(("num_steps", "peak"), [(50, 0.2), (100, 0.2), (400, 0.1), (10_000, 0.02)])
def test_the_peak_falls_with_the_root_of_longer_trainings(num_steps, peak):
    schedule = WarmUpAndDecay(0.2, 0.1, reference_steps=100)
    last_of_warm_up = jnp.asarray(num_steps // 10 - 1)
    value, _ = schedule(schedule.init(), Progress(last_of_warm_up, num_steps=jnp.asarray(num_steps)))
    np.testing.assert_allclose(value, peak, rtol=1e-6)


@pytest.mark.parametrize("reference_steps", [0, -5])
def test_a_reference_is_a_number_of_steps(reference_steps):
    with pytest.raises(ValueError, match=f"`reference_steps` must be at least 1 or `None`, got {reference_steps}"):
        WarmUpAndDecay(0.2, reference_steps=reference_steps)


@pytest.mark.parametrize("warm_up", [-0.1, 1.0])
def test_a_warm_up_is_a_fraction(warm_up):
    with pytest.raises(ValueError, match=f"`warm_up` must be at least 0 and below 1, got {warm_up}"):
        WarmUpAndDecay(0.2, warm_up)
