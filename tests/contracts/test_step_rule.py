"""What every step rule must do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components import features as ft
from lo_components import steps
from lo_components.accumulators import FirstMoment, SecondMoment, TensorView

# Rules whose first output is a direction.
DIRECTED = [
    steps.Direction(0.1),
    steps.DirectionMagnitude(0.1, 0.2),
    steps.Times(steps.DirectionMagnitude(0.1, 0.2), ft.InverseRoot(ft.Squares())),
    steps.Pooled(steps.DirectionMagnitude(0.1, 0.2), (1,)),
]
TABLE = [
    *DIRECTED,
    steps.Magnitude(0.1, 0.2),
    steps.Fixed(0.1),
    steps.Times(steps.Fixed(0.1), ft.TensorMean(ft.Gradient())),
    steps.Sum(DIRECTED[1], steps.Times(steps.Pooled(steps.Magnitude(), (0,)), ft.Momenta(1)), steps.Direction()),
]
every_rule = pytest.mark.parametrize("rule", TABLE, ids=lambda r: type(r).__name__)


def _view(shape, kinds=(FirstMoment, SecondMoment)):
    values = jnp.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)
    stats = tuple(kind(0.5 * values[None]) for kind in kinds)
    return TensorView(values, -values, stats, jnp.asarray(0, jnp.int32))


def _rows(view, rows):
    return view.with_tensors([x[:, rows] for x in view.tensors()])


def test_the_table_holds_every_step_rule(concrete_classes):
    assert {type(r) for r in TABLE} == concrete_classes(steps, steps.AbstractStepRule)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 1, 3)])
@every_rule
def test_the_update_has_the_shape_of_the_tensor(rule, shape, getkey):
    update = rule(jax.random.normal(getkey(), (rule.in_size, *shape)), _view(shape))
    assert (update.shape, update.dtype) == (shape, jnp.float32)
    assert jnp.all(jnp.isfinite(update))


@pytest.mark.parametrize("rule", DIRECTED, ids=lambda r: type(r).__name__)
def test_a_positive_direction_decreases_the_parameter_and_zero_leaves_it(rule, getkey):
    out = jax.random.normal(getkey(), (rule.in_size, 4)).at[0].set(jnp.array([1.0, -1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(jnp.sign(rule(out, _view((4,)))), [-1.0, 1.0, 0.0, -1.0])


@every_rule
def test_exactly_the_required_statistics_are_asked_for(rule):
    out = jnp.ones((rule.in_size, 4))
    rule(out, _view((4,), tuple(rule.requires)))
    for kind in rule.requires:
        with pytest.raises(ValueError, match=kind.__name__):
            rule(out, _view((4,), tuple(rule.requires - {kind})))


@every_rule
def test_pointwise_rules_are_pointwise_and_no_others(rule, getkey):
    out, view = jax.random.normal(getkey(), (rule.in_size, 6, 3)), _view((6, 3))
    part, whole = rule(out[:, :2], _rows(view, slice(0, 2))), rule(out, view)[:2]
    assert np.allclose(part, whole, rtol=1e-6) == rule.pointwise


@every_rule
def test_padded_vectors_are_updated_as_alone(rule, getkey):
    out, view = jax.random.normal(getkey(), (rule.in_size, 6)), _view((6,))
    counted, size = jnp.arange(6) < 4, jnp.asarray(4)
    padded = dataclasses.replace(view.with_tensors([x.at[:, 4:].set(jnp.nan) for x in view.tensors()]), size=size)
    update = rule(out, dataclasses.replace(padded, counted=counted))[:4]
    alone = dataclasses.replace(_rows(view, slice(0, 4)), size=None)
    np.testing.assert_allclose(update, rule(out[:, :4], alone), rtol=1e-6)


@every_rule
def test_multipliers_are_constants(rule):
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(rule))
