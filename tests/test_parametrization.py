import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import run_python

from lo_components.nn import MLP, declared_widths
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    SP,
    MuP,
    WidthSpec,
    infer_widths,
)

RULES = (SCALE_FREE, PROPORTIONAL, ORTHOGONALIZED)

# fan-in 64, 4 times the base width's; fan-out 6 times.
WIDTHS = {
    "input": WidthSpec((96, 10), "input", 10, fan_out_mult=6.0),
    "hidden": WidthSpec((96, 64), "hidden", 64, fan_in_mult=4.0, fan_out_mult=6.0),
    "output": WidthSpec((10, 64), "output", 64, fan_in_mult=4.0),
    "vector": WidthSpec((96,), "vector", fan_out_mult=6.0),
}
MUP = MuP(input_mult=3.0, output_mult=5.0, hidden_mult=7.0, bias_std=0.5)

# role: initial standard deviation, forward multiplier, update scales by rule
EXPECTED = {
    "MuP": (
        MUP,
        {
            "input": (10**-0.5, 3.0, 1.0, 6.0, 6.0**0.5),
            "hidden": (0.125, 1.0, 7.0 / 4.0, 7.0 * 6.0 / 4.0, 7.0 * 1.5**0.5),
            "output": (0.0, 5.0 / 4.0, 1.0, 4.0, 2.0),
            "vector": (0.5, 1.0, 1.0, 6.0, 6.0**0.5),
        },
    ),
    "SP": (
        SP(),
        {
            "input": (10**-0.5, 1.0, 1.0, 1.0, 1.0),
            "hidden": (0.125, 1.0, 1.0, 1.0, 1.0),
            "output": (0.125, 1.0, 1.0, 1.0, 1.0),
            "vector": (0.0, 1.0, 1.0, 1.0, 1.0),
        },
    ),
}


@pytest.mark.parametrize("role", WIDTHS)
@pytest.mark.parametrize("name", EXPECTED)
def test_table_of_values(name, role):
    parametrization, table = EXPECTED[name]
    width = WIDTHS[role]
    actual = (
        parametrization.init_std(width),
        parametrization.forward_multiplier(width),
        *(parametrization.update_scale(width, rule) for rule in RULES),
    )
    assert actual == pytest.approx(table[role], rel=1e-12)


@pytest.mark.parametrize("role", WIDTHS)
def test_mup_has_the_multipliers_of_sp_at_the_base_width(role):
    width = WidthSpec((16, 16), role, 16)
    assert MuP().forward_multiplier(width) == SP().forward_multiplier(width) == 1.0
    assert all(p.update_scale(width, rule) == 1.0 for p in (MuP(), SP()) for rule in RULES)


def test_hyper_multipliers_default_to_one():
    assert (MuP().input_mult, MuP().output_mult, MuP().hidden_mult, MuP().bias_std) == (1.0, 1.0, 1.0, 1.0)


def test_update_scales_map_over_a_tree():
    widths = {"a": [WIDTHS["hidden"], WIDTHS["output"]], "b": WIDTHS["vector"]}
    assert MUP.update_scales(widths, SCALE_FREE) == {"a": [7.0 / 4.0, 1.0], "b": 1.0}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(role="hidden", fan_in=0), "`fan_in` must be at least 1"),
        (dict(role="hidden", fan_in=4, fan_in_mult=0.0), "multipliers positive"),
        (dict(role="hidden", fan_in=4, fan_in_mult=-1.0), "multipliers positive"),
        (dict(role="hidden", fan_in=4, fan_out_mult=float("nan")), "multipliers positive"),
        (dict(role="hidden", fan_in=4, fan_out_mult=float("inf")), "multipliers positive"),
    ],
)
def test_invalid_declarations_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        WidthSpec((4, 4), **kwargs)


def test_an_unknown_role_is_refused_without_the_import_hook():
    result = run_python("from lo_components.parametrization import WidthSpec; WidthSpec((4, 4), 'head')")
    assert "ValueError: `role` must be 'input', 'hidden', 'output' or 'vector', got 'head'." in result.stderr


def test_declarations_are_leaves_that_compare_by_value():
    assert jax.tree.leaves({"a": WIDTHS["hidden"]}) == [WIDTHS["hidden"]]
    assert WidthSpec((4,), "vector") == WidthSpec((4,), "vector")
    assert hash(WidthSpec((4,), "vector")) == hash(WidthSpec((4,), "vector"))


@pytest.mark.parametrize("parametrization", [SP(), MUP], ids=["SP", "MuP"])
def test_update_scales_have_the_structure_of_the_models_arrays(parametrization):
    model = MLP(3, 2, width=8, depth=3, parametrization=parametrization, base_width=2, key=jax.random.key(0))
    scales = parametrization.update_scales(declared_widths(model), SCALE_FREE)
    assert jax.tree.structure(scales) == jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
    assert all(type(s) is float for s in jax.tree.leaves(scales))
    hidden = parametrization.update_scale(WIDTHS["hidden"], SCALE_FREE)
    assert [s.weight for s in scales.layers] == [1.0, hidden, hidden, 1.0]
    assert [s.bias for s in scales.layers] == [1.0, 1.0, 1.0, 1.0]


def test_update_scales_work_on_shapes_alone():
    build = lambda key: MLP(3, 2, width=8, depth=2, parametrization=MuP(), base_width=2, key=key)  # noqa: E731
    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    expected = MuP().update_scales(declared_widths(build(jax.random.key(0))), SCALE_FREE)
    assert jax.tree.leaves(MuP().update_scales(declared_widths(shapes), SCALE_FREE)) == jax.tree.leaves(expected)
    assert jnp.prod(jnp.array(jax.tree.leaves(expected))) == 0.25


def test_arrays_shared_by_equinox_are_refused_until_they_are_declared():
    class Tied(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self, width):
            embedding = eqx.nn.Embedding(5, width, key=jax.random.key(0))
            readout = eqx.nn.Linear(width, 5, use_bias=False, key=jax.random.key(1))
            self.shared = eqx.nn.Shared((embedding, readout), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    with pytest.raises(ValueError, match="tied weights.*divide the logits"):
        infer_widths(Tied, 4, 8, 16)
    widths = jax.tree.leaves(infer_widths(Tied, 4, 8, 16, roles={"*weight": "input"}))
    assert [w.role for w in widths] == ["input"]


def test_a_field_called_layout_does_not_hide_the_layers_inside():
    class Model(eqx.Module):
        linear: eqx.nn.Linear
        layout: str = eqx.field(default="NCHW", static=True)

    widths = infer_widths(lambda width: Model(eqx.nn.Linear(3, width, key=jax.random.key(0))), 4, 8, 16)
    assert (widths.linear.weight.role, widths.linear.weight.fan_in) == ("input", 3)
