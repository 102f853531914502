import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components import features as ft
from lo_components.accumulators import (
    FactoredSecondMoment,
    FactoredSquares,
    FirstMoment,
    Momentum,
    SecondMoment,
    TensorView,
)


def _array(*values):
    return jnp.asarray(values, jnp.float32)


def _view(param=None, grad=None, stats=(), step=0):
    param = grad if param is None else param
    param = (1.0,) if param is None else param
    grad = param if grad is None else grad
    return TensorView(_array(*param), _array(*grad), stats, jnp.asarray(step, jnp.int32))


def _values(feature, view):
    channels = feature(view)
    assert all(isinstance(c, ft.Channels) for c in channels)
    assert all(c.mean_square is None for c in channels)
    return np.concatenate([np.asarray(c.values) for c in channels])


def _matrix_view():
    """3 x 4, where rows and columns have statistics that differ from each other and between channels."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.uniform(0.5, 2.0, shape), jnp.float32)  # noqa: E731
    factored = FactoredSecondMoment(draw(3, 3, 1), draw(3, 1, 4), draw(3, 3, 1), draw(3, 1, 4), diagonal=False)
    stats = (FirstMoment(draw(3, 3, 4)), SecondMoment(draw(1, 3, 4)), factored)
    return TensorView(draw(3, 4), draw(3, 4), stats, jnp.asarray(5, jnp.int32))


def test_raw_features_are_the_gradient_and_the_parameter():
    view = _view(param=(1.0, 2.0), grad=(3.0, 4.0))
    np.testing.assert_array_equal(_values(ft.Gradient(), view), [[3.0, 4.0]])
    np.testing.assert_array_equal(_values(ft.Parameter(), view), [[1.0, 2.0]])


def test_worker_deltas_are_one_channel_per_worker_in_their_order():
    deltas = _array([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    view = TensorView(_array(0.0, 0.0), _array(3.0, 4.0), (), jnp.asarray(0, jnp.int32), deltas=deltas)
    np.testing.assert_array_equal(_values(ft.WorkerDeltas(3), view), deltas)
    with pytest.raises(ValueError, match="built for 2 workers, but got deltas from 3"):
        ft.WorkerDeltas(2)(view)
    with pytest.raises(ValueError, match="`num_workers` must be at least 1, got 0"):
        ft.WorkerDeltas(0)


def test_moment_features_are_the_statistics_themselves():
    view = _matrix_view()
    first, second, factored = view.stats
    np.testing.assert_array_equal(_values(ft.Momenta(), view), first.m)
    np.testing.assert_array_equal(_values(ft.Squares(), view), second.v)
    np.testing.assert_array_equal(_values(ft.RowSquares(), view), factored.row)
    np.testing.assert_array_equal(_values(ft.ColumnSquares(), view), factored.col)


def test_normalized_momenta_add_their_epsilon_to_the_second_moment():
    stats = (FirstMoment(_array([2.0, 2.0], [4.0, 4.0])), SecondMoment(_array([3e-6, 4.0])))
    expected = [[2.0 / np.sqrt(4e-6), 1.0], [4.0 / np.sqrt(4e-6), 2.0]]
    np.testing.assert_allclose(_values(ft.NormalizedMomenta(2), _view(stats=stats)), expected, rtol=1e-5)
    np.testing.assert_allclose(
        _values(ft.NormalizedMomenta(2, eps=5.0), _view(stats=stats))[:, 1], [2.0 / 3.0, 4.0 / 3.0], rtol=1e-5
    )


def test_inverse_root_adds_its_epsilon():
    view = _view(stats=(SecondMoment(_array([0.0, 3e-8, 4.0])),))
    np.testing.assert_allclose(_values(ft.InverseRoot(ft.Squares()), view), [[1e4, 5e3, 0.5]], rtol=1e-5)
    np.testing.assert_allclose(_values(ft.InverseRoot(ft.Squares(), eps=5.0), view)[0, 2], 1 / 3, rtol=1e-5)


def test_factored_features_multiply_by_both_factors():
    view = _matrix_view()
    first, _, factored = view.stats
    factors = np.asarray(factored.row_factor) * np.asarray(factored.col_factor)
    np.testing.assert_allclose(_values(ft.FactoredGradient(), view), view.grad[None] * factors, rtol=1e-6)
    np.testing.assert_allclose(_values(ft.FactoredMomenta(), view), first.m * factors, rtol=1e-6)


def test_below_rank_2_factored_momenta_have_their_own_epsilon():
    stat = FactoredSquares((0.9,)).read(FactoredSquares((0.9,)).init(jnp.zeros(2)))
    view = _view(grad=(2.0, 2.0), stats=(FirstMoment(_array([2.0, 4.0])), stat))
    np.testing.assert_allclose(_values(ft.FactoredMomenta(1), view), [[2e3, 4e3]], rtol=1e-5)
    np.testing.assert_allclose(_values(ft.FactoredMomenta(1, eps=4.0), view), [[1.0, 2.0]], rtol=1e-5)
    np.testing.assert_allclose(_values(ft.FactoredGradient(1), view), [[2 * 1e-9**-0.5] * 2], rtol=1e-5)


@pytest.mark.parametrize("step", [0, 1, 250, 10**6])
def test_time_embedding_counts_the_steps_taken_before(step):
    taus = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    values = _values(ft.TimeEmbedding(), _view(step=step))
    assert values.shape == (11, 1)
    np.testing.assert_allclose(values[:, 0], np.tanh(step / taus - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time_scales", [(), (0.0,), (1.0, -3.0)])
def test_time_scales_must_be_positive(time_scales):
    with pytest.raises(ValueError, match="`time_scales`"):
        ft.TimeEmbedding(time_scales)


def test_natural_shapes_are_kept():
    shapes = [
        c.values.shape for f in (ft.RowSquares(), ft.ColumnSquares(), ft.TimeEmbedding()) for c in f(_matrix_view())
    ]
    assert shapes == [(3, 3, 1), (3, 1, 4), (11, 1, 1)]


def test_concat_keeps_the_order_and_adds_sizes_and_requirements():
    view = _view(param=(1.0, 2.0), grad=(3.0, 4.0), stats=(FirstMoment(_array([5.0, 6.0])),))
    feature = ft.Concat(ft.Parameter(), ft.Momenta(1), ft.Gradient())
    np.testing.assert_array_equal(_values(feature, view), [[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]])
    assert feature.size == 3
    assert feature.requires == {FirstMoment}


def test_rms_normalization_divides_each_channel_by_its_own_root_mean_square():
    view = _view(param=(3.0, 4.0), grad=(0.0, 200.0))
    for channels, x in zip(
        ft.RMSNormalized(ft.Concat(ft.Parameter(), ft.Gradient()))(view), ([3, 4], [0, 200]), strict=True
    ):
        x = np.asarray(x, np.float64)
        np.testing.assert_array_equal(channels.values[0], x)
        np.testing.assert_allclose(channels.scaled()[0], x / np.sqrt(np.mean(x**2) + 1e-5), rtol=1e-6)


def test_rms_normalization_adds_its_epsilon_to_the_mean_square():
    (channels,) = ft.RMSNormalized(ft.Parameter())(_view(param=(1e-3, 7e-3)))
    np.testing.assert_allclose(channels.scaled()[0], np.array([1e-3, 7e-3]) / np.sqrt(25e-6 + 1e-5), rtol=1e-5)
    (channels,) = ft.RMSNormalized(ft.Parameter(), eps=3.0)(_view(param=(1.0, 1.0)))
    np.testing.assert_allclose(channels.scaled()[0], [0.5, 0.5], rtol=1e-6)


def test_rms_normalization_of_a_broadcast_channel_equals_that_of_the_tiled_one():
    view = _matrix_view()
    row = np.asarray(view.stats[2].row)
    (channels,) = ft.RMSNormalized(ft.RowSquares())(view)
    tiled = np.broadcast_to(row, (3, 3, 4))
    expected = row / np.sqrt(np.mean(tiled**2, axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(channels.scaled(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 3])
def test_rms_normalization_of_nothing_or_of_zeros_is_zero(size):
    (channels,) = ft.RMSNormalized(ft.Parameter())(_view(param=[0.0] * size, grad=[0.0] * size))
    np.testing.assert_array_equal(channels.scaled(), np.zeros((1, size)))
    np.testing.assert_array_equal(channels.mean_square, [0.0])


@pytest.mark.parametrize("outer", [ft.RMSNormalized, ft.InverseRoot])
def test_normalized_channels_cannot_be_processed_further(outer):
    with pytest.raises(ValueError, match="`RMSNormalized` must come last"):
        outer(ft.RMSNormalized(ft.Parameter()))(_view())


def test_channels_without_a_mean_square_are_not_scaled():
    channels = ft.Channels(_array([1.0, 2.0]))
    assert channels.scale is None
    np.testing.assert_array_equal(channels.scaled(), [[1.0, 2.0]])


def test_a_missing_statistic_is_named_with_those_at_hand():
    with pytest.raises(ValueError, match="No accumulator produces `SecondMoment`.*available statistics: FirstMoment"):
        _view(stats=(FirstMoment(_array([1.0])),)).stat(SecondMoment)
    with pytest.raises(ValueError, match="available statistics: none"):
        _view().stat(SecondMoment)


def test_statistics_are_found_by_type_whatever_their_order():
    view = _matrix_view()
    for stat in view.stats:
        assert view.stat(type(stat)) is stat


def test_the_tensors_of_a_view_can_be_replaced_by_those_of_a_block():
    full = _matrix_view()
    deltas = jnp.arange(24.0).reshape(2, 3, 4)
    full = TensorView(full.param, full.grad, full.stats, full.step, jnp.asarray(9, jnp.int32), _array(2.0)[0], deltas)
    part = full.with_tensors([x[:, 1:] if x.shape[1] == 3 else x for x in full.tensors()])
    np.testing.assert_array_equal(part.param, full.param[1:])
    np.testing.assert_array_equal(part.grad, full.grad[1:])
    np.testing.assert_array_equal(part.stats[0].m, full.stats[0].m[:, 1:])
    np.testing.assert_array_equal(part.stats[2].row, full.stats[2].row[:, 1:])
    np.testing.assert_array_equal(part.stats[2].col, full.stats[2].col)
    np.testing.assert_array_equal(part.deltas, deltas[:, 1:])
    assert (part.step, part.num_steps, part.loss, part.size) == (5, 9, 2.0, 12)


def test_momentum_reads_as_the_first_moment_that_features_ask_for():
    momentum = Momentum((0.5,))
    state = momentum.update(view_of(_array(2.0)), momentum.init(_array(0.0)))
    np.testing.assert_array_equal(_values(ft.Momenta(1), _view(stats=(momentum.read(state),))), [[1.0]])
