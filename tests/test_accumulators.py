import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components.accumulators import Decays, FactoredSquares, FactoredState, Momentum, SquaredMomentum


def _set_offsets(accumulator, offsets):
    return eqx.tree_at(lambda a: a.decays.offset, accumulator, jnp.asarray(offsets, jnp.float32))


def _run(accumulator, grads):
    state = accumulator.init(grads[0])
    for grad in grads:
        state = accumulator.update(view_of(grad), state)
    return state


def _grads(getkey, shape, steps=3):
    return [jnp.asarray(np.random.default_rng(t).normal(size=shape), jnp.float32) for t in range(steps)]


def _average(values, b):
    total = np.zeros_like(values[0])
    for x in values:
        total = b * total + (1 - b) * x
    return total


def test_decays_start_at_their_initial_values_whether_learnable_or_not():
    for learnable in (False, True):
        values = Decays((0.0, 0.9, 0.999), learnable=learnable)(0)
        np.testing.assert_allclose(values, [0.0, 0.9, 0.999], rtol=1e-6, atol=1e-7)


def test_learnable_decays_follow_the_exponential_map():
    offset = np.array([-0.3, 0.0, 0.2], np.float32)
    decays = eqx.tree_at(lambda d: d.offset, Decays((0.9, 0.99, 0.5), learnable=True), jnp.asarray(offset))
    complement = np.array([0.1, 0.01, 0.5])
    np.testing.assert_allclose(decays(0), 1 - complement * np.exp(10.0 * offset), rtol=1e-5)


def test_decays_have_trailing_axes_to_broadcast_over_a_tensor():
    assert Decays((0.9, 0.99), learnable=False)(3).shape == (2, 1, 1, 1)
    assert len(Decays((0.9, 0.99), learnable=True)) == 2


def test_constant_decays_are_not_meta_parameters():
    assert eqx.filter(Decays((0.9,), learnable=False), eqx.is_array) == Decays((0.9,), learnable=False)
    assert Decays((0.9,), learnable=True).offset.shape == (1,)


@pytest.mark.parametrize("initial", [(), (1.0,), (-0.1,), (0.9, float("nan"))])
def test_decays_outside_of_zero_to_one_are_refused(initial):
    with pytest.raises(ValueError, match="`decays`"):
        Decays(initial, learnable=True)


def test_momentum_is_an_uncorrected_average_from_zero(getkey):
    grads = _grads(getkey, (2, 3))
    m = _run(Momentum((0.5, 0.9)), grads).m
    np.testing.assert_allclose(m, np.stack([_average(np.asarray(grads), b) for b in (0.5, 0.9)]), rtol=1e-5, atol=1e-6)


def test_momentum_uses_a_negative_decay_as_it_is(getkey):
    grads = _grads(getkey, (4,))
    b = 1 - 0.1 * np.exp(10 * 0.3)
    assert b < -0.9
    m = _run(_set_offsets(Momentum((0.9,), learnable=True), [0.3]), grads).m
    np.testing.assert_allclose(m[0], _average(np.asarray(grads), b), rtol=1e-5)


def test_squares_clip_a_negative_decay_to_zero(getkey):
    grads = _grads(getkey, (3, 4))
    squares = _run(_set_offsets(SquaredMomentum((0.999,), learnable=True), [1.0]), grads)
    np.testing.assert_allclose(squares.v[0], np.square(grads[-1]), rtol=1e-6)
    factored = _run(_set_offsets(FactoredSquares((0.9,), learnable=True), [1.0]), grads)
    np.testing.assert_allclose(factored.row[0], np.square(grads[-1]).mean(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(factored.col[0], np.square(grads[-1]).mean(0, keepdims=True), rtol=1e-6)
    diagonal = _run(_set_offsets(FactoredSquares((0.9,), learnable=True), [1.0]), [g[0] for g in grads])
    np.testing.assert_allclose(diagonal.row[0], np.square(grads[-1][0]), rtol=1e-6)


def test_squares_are_an_uncorrected_average_of_squared_gradients(getkey):
    grads = _grads(getkey, (2, 3))
    v = _run(SquaredMomentum((0.5, 0.9)), grads).v
    expected = np.stack([_average(np.square(grads), b) for b in (0.5, 0.9)])
    np.testing.assert_allclose(v, expected, rtol=1e-5)


# The axes averaged over: the largest (d0) for rows, the second largest (d1) for columns; later axes win ties.
FACTORED_AXES = {
    (6, 6): (0, 1),
    (5, 7): (0, 1),
    (7, 5): (1, 0),
    (3, 3, 4, 8): (2, 3),
    (5, 5, 3, 6): (1, 3),
    (4, 4, 4): (1, 2),
    (2, 4, 3, 4, 2): (1, 3),
    (1, 9): (0, 1),
    (9, 1): (1, 0),
    (1, 1): (0, 1),
}


@pytest.mark.parametrize("shape", FACTORED_AXES)
def test_rows_average_over_the_largest_axis_and_columns_over_the_second_largest(shape, getkey):
    d1, d0 = FACTORED_AXES[shape]
    accumulator = FactoredSquares((0.5, 0.9))
    grads = _grads(getkey, shape)
    state = _run(accumulator, grads)
    squares = np.square(np.asarray(grads, np.float64))
    for i, b in enumerate((0.5, 0.9)):
        row, col = (_average(squares.mean(1 + axis, keepdims=True), b) for axis in (d0, d1))
        np.testing.assert_allclose(state.row[i], row, rtol=1e-5)
        np.testing.assert_allclose(state.col[i], col, rtol=1e-5)
        stat = accumulator.read(state)
        np.testing.assert_allclose(stat.row_factor[i], np.sqrt((row.mean(d1, keepdims=True) + 1e-9) / row), rtol=1e-5)
        np.testing.assert_allclose(stat.col_factor[i], col**-0.5, rtol=1e-5)
    assert state.row.shape == (2, *(1 if a == d0 else n for a, n in enumerate(shape)))
    assert state.col.shape == (2, *(1 if a == d1 else n for a, n in enumerate(shape)))
    assert not stat.diagonal


def test_a_zero_gradient_leaves_the_smallest_square_in_factored_statistics():
    accumulator = FactoredSquares((0.0,))
    matrix = _run(accumulator, [jnp.zeros((2, 3))])
    vector = _run(accumulator, [jnp.zeros(3)])
    for statistic in (matrix.row, matrix.col, vector.row):
        assert statistic is not None
        np.testing.assert_allclose(statistic, np.full(statistic.shape, 1e-30), rtol=1e-6)


def _read_matrix(row, col):
    row, col = jnp.asarray(row, jnp.float32)[None, :, None], jnp.asarray(col, jnp.float32)[None, None, :]
    stat = FactoredSquares((0.9,)).read(FactoredState(row, col))
    return stat.row_factor[0, :, 0], stat.col_factor[0, 0]


def test_a_small_constant_guards_the_mean_of_the_rows():
    row_factor, _ = _read_matrix([1e-9, 5e-9], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(row_factor, [np.sqrt(4.0), np.sqrt(4.0 / 5.0)], rtol=1e-5)


def test_factors_are_bounded_where_statistics_vanish():
    row_factor, col_factor = _read_matrix([0.0, 1.0], [0.0, 5e-10, 4.0])
    np.testing.assert_allclose(row_factor, [1e-9**-0.5, 0.5**0.5], rtol=1e-5)
    np.testing.assert_allclose(col_factor, [1e-9**-0.5, 1e-9**-0.5, 0.5], rtol=1e-5)


def test_below_rank_2_the_factor_is_the_guarded_inverse_root_of_the_full_second_moment():
    v = jnp.asarray([[0.0, 1e-9, 0.25]])
    stat = FactoredSquares((0.9,)).read(FactoredState(v, jnp.zeros((1, 1))))
    np.testing.assert_allclose(stat.row_factor, [[1e-9**-0.5, 2e-9**-0.5, 2.0]], rtol=1e-5)
    np.testing.assert_array_equal(stat.col_factor, [[1.0]])
    np.testing.assert_array_equal(stat.row, v)
    np.testing.assert_array_equal(stat.col, v)
    assert stat.diagonal


def test_below_rank_2_the_full_second_moment_is_averaged(getkey):
    grads = _grads(getkey, (5,))
    state = _run(FactoredSquares((0.5, 0.9)), grads)
    assert state.col.tolist() == [[0.0]]
    expected = np.stack([_average(np.square(grads), b) for b in (0.5, 0.9)])
    np.testing.assert_allclose(state.row, expected, rtol=1e-5)


def test_factored_squares_need_the_memory_of_rows_and_columns_only():
    state = FactoredSquares().init(jnp.zeros((40, 50)))
    assert state.row.size + state.col.size == 3 * (40 + 50)
