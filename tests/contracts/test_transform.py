"""What every transform of updates must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components import parametrization as pz
from lo_components import steps
from lo_components.accumulators import TensorView

TABLE = [
    steps.RelativeToParameter(),
    steps.RMSOne(),
    steps.Orthogonalized(),
    steps.Orthogonalized(axes=(0, 1)),
    steps.TimesLastControl(),
    steps.Flattened((steps.Orthogonalized(), steps.RMSOne())),
    steps.Flattened((steps.RMSOne(),), axis=-1),
]
RULES = [pz.SCALE_FREE, pz.PROPORTIONAL, pz.ORTHOGONALIZED, pz.RELATIVE]
SHAPES = [(1,), (4,), (4, 3), (1, 5), (2, 4, 3)]
every_transform = pytest.mark.parametrize("transform", TABLE, ids=lambda t: type(t).__name__)


def _view(param, **known):
    return TensorView(param, param, (), jnp.asarray(0, jnp.int32), controls=jnp.array([3.0, -0.5]), **known)


def test_the_table_holds_every_transform(concrete_classes):
    assert {type(t) for t in TABLE} == concrete_classes(steps, steps.AbstractTransform)


@pytest.mark.parametrize("shape", SHAPES)
@every_transform
def test_updates_keep_their_shape_and_jit_does_not_change_them(transform, shape, getkey):
    update, param = jax.random.normal(getkey(), (2, *shape))
    new = transform(update, _view(param))
    assert (new.shape, new.dtype) == (shape, jnp.float32)
    np.testing.assert_allclose(jax.jit(lambda u, v: transform(u, v))(update, _view(param)), new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@every_transform
def test_an_update_of_zeros_stays_zero_with_finite_derivatives(transform, shape):
    zeros = jnp.zeros(shape)
    total = lambda update: jnp.sum(transform(update, _view(zeros)))  # noqa: E731
    value, derivative = jax.value_and_grad(total)(zeros)
    assert value == 0.0
    if not isinstance(transform, steps.Orthogonalized | steps.Flattened):  # whose norm of zeros has none
        assert jnp.all(jnp.isfinite(derivative))


def test_flattening_is_right_for_padded_vectors_only_if_the_other_transforms_are():
    class Reversed(steps.AbstractTransform):
        update_rule = steps.RMSOne.update_rule
        __call__ = lambda self, update, view: update[::-1]  # noqa: E731

    assert steps.Flattened((steps.RMSOne(),)).padding
    assert not steps.Flattened((steps.RMSOne(), Reversed())).padding


@every_transform
def test_padded_vectors_are_transformed_as_alone(transform, getkey):
    update, param = jax.random.normal(getkey(), (2, 6)).at[:, 4:].set(jnp.nan)
    padded = _view(param, size=jnp.asarray(4), counted=jnp.arange(6) < 4)
    np.testing.assert_allclose(transform(update, padded)[:4], transform(update[:4], _view(param[:4])), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@every_transform
def test_the_declared_rule_has_the_power_of_the_gradient_that_updates_show(transform, rule, getkey):
    """An update that grows with the gradient's power s stays so, or becomes independent of its size."""
    update, param = jax.random.normal(getkey(), (2, 4, 3))
    factor = 2.0**rule.gradient_power if rule != pz.RELATIVE else 1.0
    ratio = transform(factor * update, _view(param)) / transform(update, _view(param))
    declared = transform.update_rule(rule, 2)
    expected = 1.0 if declared in (pz.RELATIVE, pz.SCALE_FREE, pz.ORTHOGONALIZED, pz.ORTHOGONALIZED_RMS) else 2.0
    if not (declared == pz.RELATIVE and rule == pz.PROPORTIONAL):  # a relative step supposes an update of size 1
        np.testing.assert_allclose(ratio, expected, rtol=1e-4)


@every_transform
def test_there_is_a_rule_for_every_rank(transform):
    assert all(isinstance(transform.update_rule(rule, ndim), pz.UpdateRule) for rule in RULES for ndim in range(5))


@every_transform
def test_transforms_hold_no_meta_parameters(transform):
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(transform))
