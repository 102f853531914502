"""What every parametrization must do."""

import math

import jax
import pytest

from lo_components import parametrization as pz
from lo_components.parametrization import Axis, WidthSpec

TABLE = [
    pz.SP(),
    pz.MuP(),
    pz.MuP(input_mult=2.0, output_mult=3.0, hidden_mult=4.0, bias_std=0.0),
    pz.DepthMuP(depth=8, base_depth=2),
    pz.DepthMuP(depth=8, exponent=0.5, mup=pz.MuP(hidden_mult=2.0)),
    pz.Absorbed(),
    pz.Absorbed(pz.MuP(output_mult=3.0)),
]
WIDTHS = {
    "input": WidthSpec((8, 3), "input", 3, fan_out_mult=2.0),
    "hidden": WidthSpec((8, 8), "hidden", 8, fan_in_mult=2.0, fan_out_mult=2.0),
    "output": WidthSpec((3, 8), "output", 8, fan_in_mult=2.0),
    "vector": WidthSpec((8,), "vector", fan_out_mult=2.0),
    "residual": WidthSpec((8, 8), "hidden", 8, fan_in_mult=2.0, fan_out_mult=2.0, residual=True),
}
RULES = [pz.SCALE_FREE, pz.PROPORTIONAL, pz.ORTHOGONALIZED]
every_parametrization = pytest.mark.parametrize("parametrization", TABLE, ids=lambda p: type(p).__name__)


def test_the_table_holds_every_parametrization(concrete_classes):
    assert {type(p) for p in TABLE} == concrete_classes(pz, pz.AbstractParametrization)


@pytest.mark.parametrize("role", WIDTHS)
@every_parametrization
def test_values_are_finite_python_floats(parametrization, role):
    width = WIDTHS[role]
    std, forward = parametrization.init_std(width), parametrization.forward_multiplier(width)
    scales = [parametrization.update_scale(width, rule) for rule in RULES]
    assert all(type(x) is float and math.isfinite(x) for x in (std, forward, *scales))
    assert std >= 0 and forward > 0 and min(scales) > 0


@pytest.mark.parametrize("head", [Axis.fixed(8), Axis.growing(8), Axis.growing(8, 4)], ids=str)
@every_parametrization
def test_multipliers_of_attention_and_of_residual_branches_are_positive_floats(parametrization, head):
    for x in (parametrization.attention_scale(head), parametrization.residual_multiplier):
        assert type(x) is float and math.isfinite(x) and x > 0


@every_parametrization
def test_heads_of_one_size_at_every_width_are_scaled_as_usual(parametrization):
    assert parametrization.attention_scale(Axis.fixed(16)) == 0.25


@every_parametrization
def test_update_scales_are_update_scale_of_every_leaf(parametrization):
    for rule in RULES:
        expected = {role: parametrization.update_scale(width, rule) for role, width in WIDTHS.items()}
        assert parametrization.update_scales(WIDTHS, rule) == expected
        assert parametrization.update_scales(WIDTHS, dict.fromkeys(WIDTHS, rule)) == expected


@every_parametrization
def test_each_array_has_a_rule_of_its_own_and_unscaled_ones_stay_as_they_are(parametrization):
    rules = dict.fromkeys(WIDTHS, pz.UNSCALED) | {"hidden": pz.PROPORTIONAL}
    expected = dict.fromkeys(WIDTHS, 1.0) | {"hidden": parametrization.update_scale(WIDTHS["hidden"], pz.PROPORTIONAL)}
    assert parametrization.update_scales(WIDTHS, rules) == expected


@every_parametrization
def test_parametrizations_hold_no_meta_parameters(parametrization):
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(parametrization))
