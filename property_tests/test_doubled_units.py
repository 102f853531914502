"""Two exact laws: pairs of networks that compute the same function, and still do after training under muP.

**Doubling.** Duplicate every hidden unit, and halve the weights between hidden units, since each now sums over twice as
many inputs. The function is the same. Under muP the wider network trains exactly like the narrow one, with SGD and with
any optimizer whose update does not depend on the scale of the gradient. If a forward multiplier, an update scale or the
scale of attention is missing, the two networks diverge in the first or second step. The test needs no statistics and no
exponents; its only tolerance is for float32. The same holds for inputs that are declared to grow.

**Absorbing.** Moving forward multipliers into initial values and update scales does not change training.
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


def sampled(shapes, rng):
    """Parameters with standard deviation 1 / sqrt(fan-in), the readout included; the laws hold at any scale."""

    def sample(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[1:])))
        return jnp.asarray(rng.normal(size=leaf.shape) * fan_in**-0.5, jnp.float32)

    return jax.tree.map(sample, arrays_of(shapes))


def arrays_of(shapes):
    return eqx.filter(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def doubled(params, shapes):
    """Each array at twice the width: every unit is duplicated, and weights with doubled inputs and outputs are halved.

    Only shapes are used, not the declarations under test.
    """

    def double(leaf, wide):
        grows = [a != b for a, b in zip(leaf.shape, wide.shape, strict=True)]
        for axis in np.flatnonzero(grows):
            leaf = jnp.repeat(leaf, 2, axis)
        return leaf / 2 if sum(grows) == 2 else leaf

    # The structures differ, since they contain sizes.
    leaves, structure = jax.tree.flatten(arrays_of(shapes))
    return structure.unflatten(list(map(double, jax.tree.leaves(params), leaves)))


def assert_same_training(a, b):
    """The change of the function agrees up to 1e-3 of its maximum. Rounding errors are at most 1e-5."""
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
    params = sampled(narrow, rng)
    a, b = (
        trajectory(model, p, parametrization.update_scales(declared_widths(model), rule), optimizer, *batch)
        for model, p in ((narrow, params), (wide, doubled(params, wide)))
    )
    assert_same_training(a, b)


@settings(max_examples=3)
@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow), "lm"])
@given(seeds, rates, st.tuples(*[hyper_multipliers] * 3))
def test_a_network_with_every_unit_doubled_trains_as_before_with_orthogonalized_updates(name, seed, rate, mults):
    """The doubled gradient has the same singular vectors, repeated, and the same relative singular values."""
    parametrization, optimizer = with_multipliers(mults), Orthogonalized(jnp.float32(10 * rate))
    rng = np.random.default_rng(seed)
    batch = inputs_for(name, rng)
    narrow, wide = (shape_of_model(name, n * WIDTHS[name], parametrization, WIDTHS[name]) for n in (1, 2))
    params = sampled(narrow, rng)
    a, b = (
        trajectory(model, p, parametrization.update_scales(declared_widths(model), ORTHOGONALIZED), optimizer, *batch)
        for model, p in ((narrow, params), (wide, doubled(params, wide)))
    )
    assert_same_training(a, b)


@given(seeds, rates, st.booleans(), st.tuples(*[hyper_multipliers] * 3))
def test_a_network_that_sees_every_input_twice_trains_as_before_if_inputs_grow(seed, rate, by_adam, mults):
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
    params = sampled(once, rng)
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
    """The law holds up to the features' epsilons: 1e-6 is added to squares of gradients, which halve.

    So gradients are large and the tolerance is 2 %. Measured differences are 0.02 to 0.4 % at an `output_mult` of 300,
    and up to 5 % at 1.
    """
    rng = np.random.default_rng(seed)
    inputs, classes = inputs_for("mlp", rng)
    narrow, wide = (shape_of_model("mlp", n * WIDTHS["mlp"], MuP(output_mult=300.0), WIDTHS["mlp"]) for n in (1, 2))
    params = sampled(narrow, rng)
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
    params = sampled(models[0], rng)
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
    """The model is unmodified: its shapes give declarations, which give initial values and scales."""
    parametrization, (optimizer, rule) = Absorbed(MuP(output_mult=output_mult)), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    batch = inputs_for("mlp", rng)
    build = lambda n: eqx.nn.MLP(16, CLASSES, n, 2, key=KEY)  # noqa: E731
    narrow, wide = eqx.filter_eval_shape(build, 8), eqx.filter_eval_shape(build, 16)
    params = sampled(narrow, rng)
    found = []
    for model, width, p in ((narrow, 8, params), (wide, 16, doubled(params, wide))):
        widths = infer_widths(build, 8, 24, width)
        p = jax.tree.map(lambda w, x: parametrization.mup.forward_multiplier(w) * x, widths, p)
        found.append(trajectory(model, p, parametrization.update_scales(widths, rule), optimizer, *batch))
    assert_same_training(*found)


class Declared(eqx.Module):
    """Arrays as other frameworks keep them: an einsum attention, a stack of layers, keys and values of fixed size."""

    arrays: dict

    def __init__(self, n):
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
        self.arrays = {
            "embed": zeros(4, n),
            **{name: {"kernel": zeros(n, n // 4, 4), "bias": zeros(n // 4, 4)} for name in ("query", "key", "value")},
            "out": {"kernel": zeros(n // 4, 4, n), "bias": zeros(n)},
            "layers": {"w": zeros(3, n, n), "b": zeros(3, n)},
            "grouped": {
                "query": zeros(n, n // 4, 4),
                "key": zeros(n, 4),
                "value": zeros(n, 4),
                "out": zeros(n // 4, 4, n),
            },
            "readout": zeros(n, CLASSES),
        }

    def __call__(self, x):
        a, g = self.arrays, self.arrays["grouped"]
        x = x.reshape(4, 4) @ a["embed"]
        q, k, v = (
            jnp.einsum("td,dhe->the", x, a[name]["kernel"]) + a[name]["bias"][None]
            for name in ("query", "key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k) / 2)
        x = x + jnp.einsum("hts,she,hed->td", weights, v, a["out"]["kernel"]) + a["out"]["bias"][None]
        x, _ = jax.lax.scan(lambda x, w: (x + jax.nn.relu(x @ w["w"] + w["b"][None]), None), x, a["layers"])
        weights = jax.nn.softmax(jnp.einsum("td,dhe,sf,fe->hts", x, g["query"], x, g["key"]) / 2)
        x = x + jnp.einsum("hts,sd,de,hef->tf", weights, x, g["value"], g["out"])
        return jnp.mean(x, 0) @ a["readout"]


DECLARED = dict(
    layout="in_out",
    axes={
        "arrays/[qkv]*/kernel": "in out out",
        "arrays/out/kernel": "in in out",
        "*grouped/out": "in in out",
        "arrays/layers/*": "stack ...",
        "*grouped/query": "in out out",
    },
    roles={"*grouped/[kv]*": "bottleneck"},
)


@given(seeds, rates, st.booleans(), hyper_multipliers)
def test_stacks_heads_and_bottlenecks_train_as_before_with_every_unit_doubled(seed, rate, by_adam, output_mult):
    parametrization, (optimizer, rule) = Absorbed(MuP(output_mult=output_mult)), adam_or_sgd(by_adam, rate)
    rng = np.random.default_rng(seed)
    batch = inputs_for("mlp", rng)
    narrow, wide = eqx.filter_eval_shape(Declared, 8), eqx.filter_eval_shape(Declared, 16)
    sizes = infer_widths(Declared, 8, 24, 8, **DECLARED)
    params = jax.tree.map(
        lambda w: jnp.asarray(0.5 * (w.fan_in or 4) ** -0.5 * rng.normal(size=w.shape), jnp.float32), sizes
    )
    found = []
    for model, width, p in ((narrow, 8, params), (wide, 16, doubled(params, wide))):
        widths = infer_widths(Declared, 8, 24, width, **DECLARED)
        p = jax.tree.map(lambda w, x: parametrization.mup.forward_multiplier(w) * x, widths, p)
        found.append(trajectory(model, p, parametrization.update_scales(widths, rule), optimizer, *batch))
    assert_same_training(*found)
