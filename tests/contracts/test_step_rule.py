"""What every step rule must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components import steps
from lo_components.accumulators import TensorView

TABLE = [steps.Direction(0.1), steps.DirectionMagnitude(0.1, 0.2)]
every_rule = pytest.mark.parametrize("rule", TABLE, ids=lambda r: type(r).__name__)


def _view(shape):
    return TensorView(jnp.ones(shape), jnp.ones(shape), (), jnp.asarray(0, jnp.int32))


def test_the_table_holds_every_step_rule(concrete_classes):
    assert {type(r) for r in TABLE} == concrete_classes(steps, steps.AbstractStepRule)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 1, 3)])
@every_rule
def test_the_update_has_the_shape_of_the_tensor(rule, shape, getkey):
    update = rule(jax.random.normal(getkey(), (rule.in_size, *shape)), _view(shape))
    assert (update.shape, update.dtype) == (shape, jnp.float32)


@every_rule
def test_a_positive_direction_decreases_the_parameter_and_zero_leaves_it(rule, getkey):
    out = jax.random.normal(getkey(), (rule.in_size, 4)).at[0].set(jnp.array([1.0, -1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(jnp.sign(rule(out, _view((4,)))), [-1.0, 1.0, 0.0, -1.0])


@every_rule
def test_pointwise_rules_are_pointwise(rule, getkey):
    out = jax.random.normal(getkey(), (rule.in_size, 6, 3))
    if rule.pointwise:
        part = rule(out[:, 2:4], _view((2, 3)))
        np.testing.assert_allclose(part, rule(out, _view((6, 3)))[2:4], rtol=1e-6)


@every_rule
def test_multipliers_are_constants(rule):
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(rule))
