"""What every parametrization must do."""

import math

import jax
import pytest

from lo_components import parametrization as pz
from lo_components.parametrization import WidthSpec

TABLE = [pz.SP(), pz.MuP(), pz.MuP(input_mult=2.0, output_mult=3.0, hidden_mult=4.0, bias_std=0.0)]
WIDTHS = {
    "input": WidthSpec((8, 3), "input", 3, fan_out_mult=2.0),
    "hidden": WidthSpec((8, 8), "hidden", 8, fan_in_mult=2.0, fan_out_mult=2.0),
    "output": WidthSpec((3, 8), "output", 8, fan_in_mult=2.0),
    "vector": WidthSpec((8,), "vector", fan_out_mult=2.0),
}
every_parametrization = pytest.mark.parametrize("parametrization", TABLE, ids=lambda p: type(p).__name__)


def test_the_table_holds_every_parametrization(concrete_classes):
    assert {type(p) for p in TABLE} == concrete_classes(pz, pz.AbstractParametrization)


@pytest.mark.parametrize("role", WIDTHS)
@every_parametrization
def test_values_are_finite_python_floats(parametrization, role):
    width = WIDTHS[role]
    std, forward = parametrization.init_std(width), parametrization.forward_multiplier(width)
    scale = parametrization.update_scale(width)
    assert all(type(x) is float and math.isfinite(x) for x in (std, forward, scale))
    assert std >= 0 and forward > 0 and scale > 0


@every_parametrization
def test_update_scales_are_update_scale_of_every_leaf(parametrization):
    scales = parametrization.update_scales(WIDTHS)
    assert scales == {role: parametrization.update_scale(width) for role, width in WIDTHS.items()}


@every_parametrization
def test_parametrizations_hold_no_meta_parameters(parametrization):
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(parametrization))
