"""Laws of the maximal update parametrization: what its scales are, and what they are for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from strategies import base_widths, depths, multipliers, width_ratios

from lo_components.nn import MLP, declared_widths
from lo_components.optimizers import Adam, Scaled
from lo_components.parametrization import SP, MuP


def _declared(width, depth, base_width, parametrization):
    make = lambda key: MLP(  # noqa: E731
        3, 2, width=width, depth=depth, parametrization=parametrization, base_width=base_width, key=key
    )
    return declared_widths(eqx.filter_eval_shape(make, jax.random.key(0)))


@given(base_widths, width_ratios, depths, multipliers)
def test_hidden_update_scale_times_fan_in_multiplier_is_the_hidden_multiplier(base, ratio, depth, multiplier):
    mup = MuP(hidden_mult=multiplier)
    widths = _declared(base * ratio, depth, base, mup)
    scales = mup.update_scales(widths)
    for declared, scale in zip(widths.layers, scales.layers, strict=True):
        if declared.weight.role == "hidden":
            assert declared.weight.fan_in_mult == ratio
            assert scale.weight * declared.weight.fan_in_mult == pytest.approx(multiplier, rel=1e-12)
        else:
            assert scale.weight == 1.0
        assert scale.bias == 1.0


@given(base_widths, depths)
def test_at_the_base_width_every_scale_and_multiplier_is_one(width, depth):
    widths = _declared(width, depth, width, MuP())
    assert set(jax.tree.leaves(MuP().update_scales(widths))) == {1.0}
    assert {MuP().forward_multiplier(w) for w in jax.tree.leaves(widths)} == {1.0}


@given(base_widths, width_ratios, depths)
def test_twice_the_width_halves_hidden_update_scales_and_the_output_multiplier(base, ratio, depth):
    mup = MuP(hidden_mult=3.0, output_mult=5.0)
    once, twice = (jax.tree.leaves(_declared(n * base * ratio, depth, base, mup)) for n in (1, 2))
    for a, b in zip(once, twice, strict=True):
        assert a.role == b.role
        update = 0.5 if a.role == "hidden" else 1.0
        forward = 0.5 if a.role == "output" else 1.0
        assert mup.update_scale(b) == pytest.approx(update * mup.update_scale(a), rel=1e-12)
        assert mup.forward_multiplier(b) == pytest.approx(forward * mup.forward_multiplier(a), rel=1e-12)


@given(base_widths, width_ratios, depths)
def test_only_the_width_relative_to_the_base_matters(base, ratio, depth):
    relative, absolute = (jax.tree.leaves(_declared(base * ratio, depth, b, MuP())) for b in (base, 1))
    for a, b in zip(relative, absolute, strict=True):
        rescale = base if a.role == "hidden" else 1
        assert MuP().update_scale(a) == pytest.approx(MuP().update_scale(b) * rescale, rel=1e-12)


WIDTHS = [32, 64, 128, 256]
SEEDS = 4


def _preactivations(model, x):
    found = []
    for layer in model.layers:
        found.append(layer(x))
        x = model.activation(found[-1])
    return found


def _change_of_preactivations(parametrization, width):
    """Root mean square change of each layer's pre-activations in three steps of Adam, over units, inputs and seeds."""
    x = jax.random.normal(jax.random.key(0), (16, 8))
    y = jax.random.normal(jax.random.key(1), (16, 4))

    def run(key):
        build = dict(width=width, depth=2, parametrization=parametrization, base_width=WIDTHS[0])
        model = MLP(8, 4, **build, key=key)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        optimizer = Scaled(Adam(1e-3), parametrization.update_scales(declared_widths(model)))

        def loss(params):
            return jnp.mean(jnp.square(jax.vmap(eqx.combine(params, static))(x) - y))

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
        before, after = (
            jax.vmap(lambda v, p=p: _preactivations(eqx.combine(p, static), v))(x) for p in (params, trained)
        )
        return [jnp.mean(jnp.square(a - b)) for a, b in zip(before, after, strict=True)]

    squares = jax.jit(jax.vmap(run), compiler_options={"xla_backend_optimization_level": 0})(
        jax.random.split(jax.random.key(2), SEEDS)
    )
    return np.sqrt([float(jnp.mean(s)) for s in squares])


def _exponents(parametrization):
    """For each layer, the slope of the logarithm of the change over the logarithm of the width."""
    # Optax's Adam mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        changes = np.stack([_change_of_preactivations(parametrization, width) for width in WIDTHS])
    return np.polyfit(np.log(WIDTHS), np.log(changes), 1)[0]


# Adam moves every entry of a matrix by about its rate r, with signs that align with the layer's input, so n inputs add
# up to a change of about r n: under SP the exponent tends to 1 from the first steps on, while the rate is small
# enough for higher orders in r n not to matter. MuP divides hidden updates by n and the readout by n: exponent 0.
# What is left is sampling: a width of 32 averages over 32 units and 4 seeds, a relative error of some 5 to 10 %, which
# over the factor 8 in width moves a fitted exponent by less than 0.1. A scale that is missing moves it by about 1.
def test_under_mup_the_change_of_preactivations_does_not_depend_on_the_width():
    exponents = _exponents(MuP())
    assert len(exponents) == 3
    np.testing.assert_allclose(exponents, 0.0, atol=0.25)


def test_under_sp_the_change_of_preactivations_grows_with_the_width():
    assert np.max(_exponents(SP())) > 0.5
