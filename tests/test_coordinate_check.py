import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD
from jax.ad_checkpoint import checkpoint_name
from meta_helpers import toy_task

from lo_components.aggregators import Mean, SlowMo
from lo_components.meta import CoordinateCheck, coordinate_check
from lo_components.meta._named_values import named_values
from lo_components.nn import named_layers
from lo_components.optimizers import OptaxOptimizer
from lo_components.parametrization import SCALE_FREE, SP, AbstractParametrization, MuP, WidthSpec
from lo_components.tasks import AbstractTask
from lo_components.unroll import GradientStep, LocalRound

KEY = jax.random.key(0)


class Doubling(AbstractTask):
    """One weight per unit, whose named value is `width ** exponent` times the sum of the weights' changes."""

    width: int = eqx.field(static=True)
    exponent: float = eqx.field(static=True)
    named: bool = eqx.field(default=True, static=True)
    widths: WidthSpec | None = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = float("inf")

    def init(self, *, key):
        return jnp.zeros(3)

    def batch(self, *, key, split="train", worker=None):
        return None

    def loss(self, params, batch, *, key):
        value = params * self.width**self.exponent
        value = checkpoint_name(value, "scaled") if self.named else value
        dead = checkpoint_name(0.0 * params, "dead") if self.named else params
        return jnp.sum(params) + 0.0 * jnp.sum(value + dead)


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0])
def test_exponents_are_those_of_the_change(exponent):
    check = coordinate_check(
        optax.sgd(0.1), lambda width: Doubling(width, exponent), widths=(4, 8, 16), num_steps=2, key=KEY
    )
    assert check.changes.shape == (3, 3, 2, 2)
    for step in (0, 1):
        fitted = check.exponents(step)["scaled"]
        assert fitted.value == pytest.approx(exponent, abs=1e-5) and fitted.error == pytest.approx(0.0, abs=1e-5)
        # Each weight moves by 0.1 per step.
        np.testing.assert_allclose(check.changes[1, :, step, 1], 0.1 * (step + 1) * 8.0**exponent, rtol=1e-5)
    assert check.largest() == pytest.approx(exponent, abs=1e-5)


@pytest.mark.parametrize(
    ("learner", "inner_step", "move"),
    [
        (optax.sgd(0.1), GradientStep(), 0.1),
        (SGD(jnp.asarray(0.2)), GradientStep(), 0.2),
        (Mean(), LocalRound(2, 3, SGD(0.1)), 0.3),
        (Mean(), LocalRound(2, 3, optax.sgd(0.2)), 0.6),
        (SlowMo(0.5), LocalRound(2, 3, SGD(0.1), participation=0.9), 0.3),
    ],
)
def test_any_learner_is_checked_with_its_inner_step(learner, inner_step, move):
    check = coordinate_check(
        learner, lambda width: Doubling(width, 0.5), widths=(4, 16), num_steps=1, inner_step=inner_step, key=KEY
    )
    assert check.exponents()["scaled"].value == pytest.approx(0.5, abs=1e-5)
    np.testing.assert_allclose(check.changes[0, :, 0, 1], move * 2.0, rtol=1e-5)


def test_a_change_of_exactly_zero_has_no_exponent_and_is_reported():
    check = coordinate_check(optax.sgd(0.1), lambda w: Doubling(w, 1.0), widths=(4, 8), num_steps=1, key=KEY)
    assert check.exponents()["dead"] is None
    line = next(line for line in check.table().splitlines() if line.startswith("dead"))
    assert "none" in line


def test_update_scales_of_the_task_are_applied():
    check = coordinate_check(
        OptaxOptimizer(optax.sgd, 0.1, update_rule=SCALE_FREE),
        lambda width: Doubling(width, 0.0, widths=WidthSpec((3,), "hidden", 3, width / 1.0), parametrization=MuP()),
        widths=(4, 8),
        num_steps=1,
        key=KEY,
    )
    assert check.exponents()["scaled"].value == pytest.approx(-1.0, abs=1e-5)


def test_changes_that_are_not_finite_have_an_infinite_exponent():
    changes = np.ones((2, 3, 1, 1))
    changes[1, 2] = np.nan
    check = CoordinateCheck((4, 8), ("layer",), changes)
    assert check.exponents()["layer"].value == np.inf and check.largest() == np.inf


def test_without_any_exponent_there_is_no_largest_or_smallest():
    check = CoordinateCheck((4, 8), ("layer",), np.zeros((2, 3, 1, 1)))
    assert np.isnan(check.largest()) and np.isnan(check.smallest())


def test_slopes_of_the_seeds_give_the_error():
    changes = np.array([[1.0, 1.0], [2.0, 4.0]]).reshape(2, 2, 1, 1)
    fitted = CoordinateCheck((4, 8), ("layer",), changes).exponents()["layer"]
    assert fitted.value == pytest.approx(1.5) and fitted.error == pytest.approx(0.5)


def test_layers_of_a_task_are_found_by_path():
    check = coordinate_check(
        optax.sgd(0.1), lambda width: toy_task(width=width), widths=(4, 8), num_steps=1, num_seeds=1, key=KEY
    )
    assert check.layers == ("layers/0", "layers/1", "layers/2")
    assert np.all(check.changes > 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(widths=(4,)), "`widths` must be at least two"),
        (dict(widths=(4, 4)), "`widths` must be at least two different"),
        (dict(widths=(4, 8), num_steps=0), "`num_steps`"),
        (dict(widths=(4, 8), num_seeds=0), "`num_seeds`"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        coordinate_check(optax.sgd(0.1), lambda w: Doubling(w, 0.0), key=KEY, **kwargs)


def test_tasks_without_names_or_with_different_ones_are_refused():
    def check(named):
        task = lambda width: Doubling(width, 0.0, named(width))  # noqa: E731
        return coordinate_check(optax.sgd(0.1), task, widths=(4, 8), num_steps=1, num_seeds=1, key=KEY)

    with pytest.raises(ValueError, match="other layers at width 8"):
        check(lambda width: width == 4)


class Unnamed(Doubling):
    def loss(self, params, batch, *, key):
        return jnp.sum(params)


def test_a_task_without_named_values_is_refused():
    with pytest.raises(ValueError, match="named_layers"):
        coordinate_check(optax.sgd(0.1), lambda w: Unnamed(w, 0.0), widths=(4, 8), num_steps=1, num_seeds=1, key=KEY)


def test_named_values_are_found_inside_transformations():
    def fn(x):
        def twice(carry, row):
            return carry, checkpoint_name(2.0 * row, "scan")

        inner = jax.vmap(lambda row: checkpoint_name(row + 1.0, "vmap"))(x)
        jitted = jax.jit(lambda y: checkpoint_name(y + 2.0, "jit"))(x)
        kept = jax.checkpoint(lambda y: jnp.sin(checkpoint_name(y + 3.0, "checkpoint")))(x)
        _, rows = jax.lax.scan(twice, 0.0, x)
        activated = jax.nn.relu(checkpoint_name(-x, "relu"))
        return jnp.sum(inner + jitted + kept + rows + activated + checkpoint_name(x, "vmap"))

    x = jnp.arange(6.0).reshape(3, 2)
    for found in (named_values(fn, x), jax.jit(lambda x: named_values(fn, x))(x)):
        expected = {"jit": x + 2, "checkpoint": x + 3, "scan": 2 * x, "relu": -x}
        assert found.keys() == expected.keys() | {"vmap"}
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value.ravel(), err_msg=name)
        np.testing.assert_array_equal(found["vmap"], np.concatenate([(x + 1).ravel(), x.ravel()]))


def test_names_change_neither_values_nor_attributes(getkey):
    model = eqx.nn.MLP(3, 2, 4, 1, key=getkey())
    named = named_layers(model)
    x = jax.random.normal(getkey(), (3,))
    np.testing.assert_array_equal(model(x), named(x))
    assert named.layers[0].weight is model.layers[0].weight
    assert list(named_values(lambda x: named_layers(named)(x), x)) == ["layers/0", "layers/1"]
