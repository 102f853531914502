"""Two exact laws: networks that compute the same function and, under muP, go on to.

**Doubling.** Give every hidden unit a copy, and halve the weights between hidden units since each now adds up twice as
many inputs: the function is the same. Under muP the wider network trains exactly as the narrow one, by SGD and by any
optimizer whose update does not depend on the scale of the gradient. All of muP's forward multipliers, update scales and
the scale of attention are there to make this so; if one is missing, the two part ways at the first or second step.
No statistics, no exponents: the only tolerance is for float32. The same holds for inputs that are declared to grow.

**Absorbing.** The same network, its forward multipliers moved into its initial values and update scales.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CLASSES, KEY, Orthogonalized, adam, inputs_for, learned, sgd, shape_of_model, trajectory
from strategies import log_floats, seeds

from lo_components.nn import MLP, declared_widths
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    Absorbed,
    Axis,
    MuP,
    infer_widths,
)

WIDTHS = {"mlp": 8, "lm": 8, "separable": 8, "cnn": 8, "resnet": 16, "vit": 8}
FAST = ["mlp", "lm", "separable"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "resnet", "vit")]
architectures = pytest.mark.parametrize("name", [*FAST, *SLOW])
hyper_multipliers = log_floats(0.5, 2.0)
rates = log_floats(1e-3, 1e-2)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def drawn(shapes, rng):
    """Parameters of deviation 1 over the root of the fan-in, the readout's too: no law here is about their scale."""

    def draw(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[1:])))
        return jnp.asarray(rng.normal(size=leaf.shape) * fan_in**-0.5, jnp.float32)

    return jax.tree.map(draw, arrays_of(shapes))


def arrays_of(shapes):
    return eqx.filter(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def doubled(params, shapes):
    """Each array at twice the width: copies beside their originals, halved where inputs and outputs were doubled.

    From shapes alone: it does not rely on the declarations that the law tests.
    """

    def double(leaf, wide):
        grows = [a != b for a, b in zip(leaf.shape, wide.shape, strict=True)]
        for axis in np.flatnonzero(grows):
            leaf = jnp.repeat(leaf, 2, axis)
        return leaf / 2 if sum(grows) == 2 else leaf

    # The structures differ: they hold sizes.
    leaves, structure = jax.tree.flatten(arrays_of(shapes))
    return structure.unflatten(list(map(double, jax.tree.leaves(params), leaves)))


def assert_same_training(a, b):
    """The change of the function agrees up to 1e-3 of its largest. Rounding makes that 1e-5 and less."""
    np.testing.assert_allclose(b[0], a[0], rtol=1e-4, atol=1e-5)
    change = np.max(np.abs(a - a[0]))
    assert change > 1e-3
    np.testing.assert_allclose(b - b[0], a - a[0], rtol=0, atol=1e-3 * change)


def with_multipliers(mults):
    return MuP(**dict(zip(("input_mult", "output_mult", "hidden_mult"), mults, strict=True)))


def adam_or_sgd(by_adam, rate):
    """An optimizer and its update rule."""
    return (adam(rate), SCALE_FREE) if by_adam else (sgd(10 * rate), PROPORTIONAL)


@architectures
@given(seeds, rates, st.booleans(), st.tuples(*[hyper_multipliers] * 3))
def test_under_mup_a_network_with_every_unit_doubled_trains_as_before(name, seed, rate, by_adam, mults):
    parametrization, (optimizer, rule) = with_multipliers(mults), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    batch = inputs_for(name, rng)
    narrow, wide = (shape_of_model(name, n * WIDTHS[name], parametrization, WIDTHS[name]) for n in (1, 2))
    params = drawn(narrow, rng)
    a, b = (
        trajectory(model, p, parametrization.update_scales(declared_widths(model), rule), optimizer, *batch)
        for model, p in ((narrow, params), (wide, doubled(params, wide)))
    )
    assert_same_training(a, b)


@settings(max_examples=3)
@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow), "lm"])
@given(seeds, rates, st.tuples(*[hyper_multipliers] * 3))
def test_a_network_with_every_unit_doubled_trains_as_before_with_orthogonalized_updates(name, seed, rate, mults):
    """Exactly: the doubled gradient has the same singular vectors, each repeated, and the same normalized values."""
    parametrization, optimizer = with_multipliers(mults), Orthogonalized(jnp.float32(10 * rate))
    rng = np.random.default_rng(seed)
    batch = inputs_for(name, rng)
    narrow, wide = (shape_of_model(name, n * WIDTHS[name], parametrization, WIDTHS[name]) for n in (1, 2))
    params = drawn(narrow, rng)
    a, b = (
        trajectory(model, p, parametrization.update_scales(declared_widths(model), ORTHOGONALIZED), optimizer, *batch)
        for model, p in ((narrow, params), (wide, doubled(params, wide)))
    )
    assert_same_training(a, b)


@given(seeds, rates, st.booleans(), st.tuples(*[hyper_multipliers] * 3))
def test_a_network_that_sees_every_input_twice_trains_as_before_where_inputs_grow(seed, rate, by_adam, mults):
    parametrization, (optimizer, rule) = with_multipliers(mults), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    inputs, classes = inputs_for("mlp", rng)
    once, twice = (
        eqx.filter_eval_shape(
            lambda n=n: MLP(
                Axis.growing(16 * n, 16), CLASSES, width=8, depth=2, parametrization=parametrization, key=KEY
            )
        )
        for n in (1, 2)
    )
    params = drawn(once, rng)
    halves = eqx.tree_at(lambda p: p.layers[0].weight, params, jnp.repeat(params.layers[0].weight, 2, 1) / 2)
    leaves = jax.tree.structure(arrays_of(twice)).unflatten(jax.tree.leaves(halves))
    a, b = (
        trajectory(model, p, parametrization.update_scales(declared_widths(model), rule), optimizer, x, classes)
        for model, p, x in ((once, params, inputs), (twice, leaves, jnp.repeat(inputs, 2, 1)))
    )
    assert_same_training(a, b)


@settings(max_examples=5)
@given(seeds, seeds, log_floats(0.5, 1.5))
@pytest.mark.slow
def test_a_random_learned_optimizer_does_not_notice_that_units_are_doubled(theta, seed, theta_scale):
    """Up to the guards in its features, 1e-6 beside squares of gradients that halve: large gradients, and 2 %.

    At an `output_mult` of 300 it measured 0.02 to 0.4 %, at 1 up to 5 %.
    """
    rng = np.random.default_rng(seed)
    inputs, classes = inputs_for("mlp", rng)
    narrow, wide = (shape_of_model("mlp", n * WIDTHS["mlp"], MuP(output_mult=300.0), WIDTHS["mlp"]) for n in (1, 2))
    params = drawn(narrow, rng)
    a, b = (
        trajectory(
            model,
            p,
            MuP().update_scales(declared_widths(model), SCALE_FREE),
            learned(theta, theta_scale),
            inputs,
            classes,
        )
        for model, p in ((narrow, params), (wide, doubled(params, wide)))
    )
    np.testing.assert_allclose(b - b[0], a - a[0], rtol=0, atol=0.02 * np.max(np.abs(a - a[0])))


@architectures
@given(seeds, rates, st.booleans(), st.tuples(*[hyper_multipliers] * 3))
def test_absorbed_multipliers_train_as_multipliers_in_the_forward_pass(name, seed, rate, by_adam, mults):
    parametrization, (optimizer, rule) = with_multipliers(mults), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    batch = inputs_for(name, rng)
    models = [
        shape_of_model(name, 2 * WIDTHS[name], p, WIDTHS[name]) for p in (parametrization, Absorbed(parametrization))
    ]
    widths = declared_widths(models[0])
    params = drawn(models[0], rng)
    absorbed = [
        parametrization.forward_multiplier(w) * x
        for w, x in zip(jax.tree.leaves(widths), jax.tree.leaves(params), strict=True)
    ]
    a, b = (
        trajectory(
            model,
            jax.tree.structure(arrays_of(model)).unflatten(leaves),
            p.update_scales(declared_widths(model), rule),
            optimizer,
            *batch,
        )
        for model, leaves, p in zip(
            models, (jax.tree.leaves(params), absorbed), (parametrization, Absorbed(parametrization)), strict=True
        )
    )
    assert_same_training(a, b)


@given(seeds, rates, st.booleans(), hyper_multipliers)
def test_a_plain_equinox_network_with_inferred_widths_and_absorbed_multipliers(seed, rate, by_adam, output_mult):
    """No code of the model knows of muP: from its shapes come declarations, from those initial values and scales."""
    parametrization, (optimizer, rule) = Absorbed(MuP(output_mult=output_mult)), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    batch = inputs_for("mlp", rng)
    build = lambda n: eqx.nn.MLP(16, CLASSES, n, 2, key=KEY)  # noqa: E731
    narrow, wide = eqx.filter_eval_shape(build, 8), eqx.filter_eval_shape(build, 16)
    params = drawn(narrow, rng)
    found = []
    for model, width, p in ((narrow, 8, params), (wide, 16, doubled(params, wide))):
        widths = infer_widths(build, 8, 24, width)
        p = jax.tree.map(lambda w, x: parametrization.mup.forward_multiplier(w) * x, widths, p)
        found.append(trajectory(model, p, parametrization.update_scales(widths, rule), optimizer, *batch))
    assert_same_training(*found)
