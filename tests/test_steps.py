import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components import steps
from lo_components.accumulators import TensorView
from lo_components.steps import Direction, DirectionMagnitude


@pytest.fixture
def view():
    return TensorView(jnp.ones(3), jnp.ones(3), (), jnp.asarray(0, jnp.int32))


OUT = jnp.array([[1.0, -2.0, 3.0], [0.0, 10.0, -10.0]])


def test_direction_steps_against_the_output(view):
    np.testing.assert_allclose(Direction(0.1)(OUT[:1], view), [-0.1, 0.2, -0.3], rtol=1e-6)
    np.testing.assert_allclose(Direction()(OUT[:1], view), [-1e-3, 2e-3, -3e-3], rtol=1e-6)


def test_direction_magnitude_steps_against_the_direction_by_the_exponential_of_the_magnitude(view):
    update = DirectionMagnitude(step_mult=0.1, exp_mult=0.2)(OUT, view)
    np.testing.assert_allclose(update, [-0.1, 0.2 * np.exp(2.0), -0.3 * np.exp(-2.0)], rtol=1e-6)


def test_both_multipliers_of_direction_magnitude_default_to_one_thousandth(view):
    update = DirectionMagnitude()(OUT, view)
    np.testing.assert_allclose(update, [-1e-3, 2e-3 * np.exp(1e-2), -3e-3 * np.exp(-1e-2)], rtol=1e-6)


@pytest.mark.parametrize(("axis", "order"), [(0, (0, 1, 2, 3)), (-1, (3, 0, 1, 2))])
def test_kernels_are_flattened_to_matrices_of_outputs_and_inputs(axis, order, getkey):
    kernel = jax.random.normal(getkey(), (4, 3, 2, 5))
    orthogonalized = steps.Orthogonalized()
    matrix = kernel.transpose(order).reshape(kernel.shape[axis], -1)
    expected = orthogonalized(matrix, view_of(matrix))
    found = steps.Flattened((orthogonalized,), axis)(kernel, view_of(kernel))
    np.testing.assert_allclose(found.transpose(order).reshape(expected.shape), expected, rtol=1e-6)
    for other in (matrix, matrix[0]):
        np.testing.assert_array_equal(
            steps.Flattened((orthogonalized,), axis)(other, view_of(other)), orthogonalized(other, view_of(other))
        )
