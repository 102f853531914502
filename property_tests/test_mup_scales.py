"""Laws of the maximal update parametrization: the values of its scales, and their effect."""

import equinox as eqx
import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import adam, coordinate_check
from strategies import base_widths, depths, multipliers, width_ratios

from lo_components.nn import MLP, declared_widths
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    SP,
    Absorbed,
    DepthMuP,
    MuP,
    WidthSpec,
)

RULES = (SCALE_FREE, PROPORTIONAL, ORTHOGONALIZED)


def _declared(width, depth, base_width, parametrization):
    make = lambda key: MLP(  # noqa: E731
        3, 2, width=width, depth=depth, parametrization=parametrization, base_width=base_width, key=key
    )
    return declared_widths(eqx.filter_eval_shape(make, jax.random.key(0)))


@given(base_widths, width_ratios, depths, multipliers)
def test_hidden_update_scale_times_fan_in_multiplier_is_the_hidden_multiplier(base, ratio, depth, multiplier):
    mup = MuP(hidden_mult=multiplier)
    widths = _declared(base * ratio, depth, base, mup)
    scales = mup.update_scales(widths, SCALE_FREE)
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
    assert set(jax.tree.leaves(MuP().update_scales(widths, SCALE_FREE))) == {1.0}
    assert {MuP().forward_multiplier(w) for w in jax.tree.leaves(widths)} == {1.0}


@given(base_widths, width_ratios, depths)
def test_twice_the_width_halves_hidden_update_scales_and_the_output_multiplier(base, ratio, depth):
    mup = MuP(hidden_mult=3.0, output_mult=5.0)
    once, twice = (jax.tree.leaves(_declared(n * base * ratio, depth, base, mup)) for n in (1, 2))
    for a, b in zip(once, twice, strict=True):
        assert a.role == b.role
        update = 0.5 if a.role == "hidden" else 1.0
        forward = 0.5 if a.role == "output" else 1.0
        assert mup.update_scale(b, SCALE_FREE) == pytest.approx(update * mup.update_scale(a, SCALE_FREE), rel=1e-12)
        assert mup.forward_multiplier(b) == pytest.approx(forward * mup.forward_multiplier(a), rel=1e-12)


@given(base_widths, width_ratios, depths)
def test_only_the_width_relative_to_the_base_matters(base, ratio, depth):
    relative, absolute = (jax.tree.leaves(_declared(base * ratio, depth, b, MuP())) for b in (base, 1))
    for a, b in zip(relative, absolute, strict=True):
        rescale = base if a.role == "hidden" else 1
        assert MuP().update_scale(a, SCALE_FREE) == pytest.approx(
            MuP().update_scale(b, SCALE_FREE) * rescale, rel=1e-12
        )


@given(base_widths, width_ratios, depths, multipliers)
def test_scales_of_sgd_are_those_of_adam_over_the_scale_of_the_gradient(base, ratio, depth, multiplier):
    """The readout's multiplier 1/m divides all gradients by m, for which SGD's scale compensates. For hidden weights,
    both scales also divide by the m times larger number of inputs."""
    mup = MuP(hidden_mult=multiplier)
    specs = jax.tree.leaves(_declared(base * ratio, depth, base, mup))
    for spec in specs:
        grows = spec.fan_out_mult if spec.role != "output" else spec.fan_in_mult
        assert grows == (1.0 if spec.shape == (2,) else ratio)
        adam, sgd = (mup.update_scale(spec, rule) for rule in (SCALE_FREE, PROPORTIONAL))
        assert sgd == pytest.approx(adam * grows, rel=1e-12)


@given(base_widths, width_ratios, depths)
def test_the_change_of_every_weight_has_the_spectral_norm_of_feature_learning(base, ratio, depth):
    """The norm is sqrt(fan-out / fan-in), for updates with equal entries and for updates with equal singular values."""
    for spec in jax.tree.leaves(_declared(base * ratio, depth, base, MuP())):
        for rule, norm in (
            (SCALE_FREE, (spec.fan_out_mult * spec.fan_in_mult) ** 0.5),
            (ORTHOGONALIZED, 1.0),
        ):
            if spec.fan_in is not None:
                change = MuP().forward_multiplier(spec) * MuP().update_scale(spec, rule) * norm
                assert change == pytest.approx((spec.fan_out_mult / spec.fan_in_mult) ** 0.5, rel=1e-12)


@given(base_widths, width_ratios, depths, multipliers, st.sampled_from(RULES))
def test_absorbing_multiplies_initial_values_once_and_updates_by_the_rule(base, ratio, depth, multiplier, rule):
    p = MuP(input_mult=multiplier, output_mult=3.0)
    for spec in jax.tree.leaves(_declared(base * ratio, depth, base, p)):
        alpha = p.forward_multiplier(spec)
        assert Absorbed(p).forward_multiplier(spec) == 1.0
        assert Absorbed(p).init_std(spec) == pytest.approx(alpha * p.init_std(spec), rel=1e-12)
        power = 2 if rule == PROPORTIONAL else 1
        expected = alpha**power * p.update_scale(spec, rule)
        assert Absorbed(p).update_scale(spec, rule) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.5, 1.0), st.sampled_from(RULES))
def test_branches_of_deep_networks_are_multiplied_and_their_updates_scaled(depth, base_depth, alpha, rule):
    """Multiplier times update scale times the number of branches is constant; for SGD the gradient contains the
    multiplier once more."""
    mup = MuP()
    p, ratio = DepthMuP(depth, base_depth, alpha, mup), depth / base_depth
    assert p.residual_multiplier == pytest.approx(ratio**-alpha)
    for residual in (True, False):
        spec = WidthSpec((8, 8), "hidden", 8, 2.0, 2.0, residual)
        reach = p.residual_multiplier**2 if rule == PROPORTIONAL else p.residual_multiplier
        total = p.update_scale(spec, rule) * (ratio * reach if residual else 1.0)
        assert total == pytest.approx(mup.update_scale(spec, rule), rel=1e-9)
        assert p.init_std(spec) == mup.init_std(spec)
        assert p.forward_multiplier(spec) == mup.forward_multiplier(spec)


# The networks of test_coordinates.py, which derives the bounds.
COORDINATES = dict(widths=(16, 48, 128), depth=2, num_steps=4, num_seeds=24, seed=2)


def test_under_mup_the_change_of_preactivations_does_not_depend_on_the_width():
    check = coordinate_check("mlp", MuP(), adam(1e-3), **COORDINATES)
    assert len(check.layers) == 3
    for exponent in check.exponents().values():
        assert abs(exponent.value) < 0.1 + 3 * exponent.error


def test_under_sp_the_change_of_preactivations_grows_with_the_width():
    assert coordinate_check("mlp", SP(), adam(1e-3), **COORDINATES).largest() > 0.5
