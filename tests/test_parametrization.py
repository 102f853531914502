import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import run_python
from meta_helpers import toy_images

from lo_components.nn import MLP, Linear, TransformerLM, declared_widths
from lo_components.optimizers import OptaxOptimizer, Scaled
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    SP,
    Absorbed,
    Axis,
    MuP,
    WidthSpec,
    check_widths,
    infer_widths,
    reinitialize,
)
from lo_components.tasks import ImageClassification

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


KEY = jax.random.key(0)
ABSORBED = Absorbed(MuP())


class Attending(eqx.Module):
    """An attention over the rows of an image."""

    embed: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention
    readout: eqx.nn.Linear

    def __init__(self, width, **sizes):
        keys = jax.random.split(KEY, 3)
        self.embed = eqx.nn.Linear(8, width, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(4, width, **sizes, key=keys[1])
        self.readout = eqx.nn.Linear(width, 3, key=keys[2])

    def __call__(self, image):
        x = jax.vmap(self.embed)(image)
        return self.readout(jnp.mean(x + self.attention(x, x, x), axis=0))


def bottlenecked(width):
    return Attending(width, qk_size=8, vo_size=8, use_query_bias=True, use_key_bias=True)


def test_queries_and_keys_of_fixed_size_do_not_start_at_zero_and_move():
    with pytest.warns(UserWarning, match="`attention/key_proj/weight`, `attention/query_proj/weight`, .*`roles`"):
        widths = infer_widths(bottlenecked, 16, 32, 64)
    assert not widths.readout.weight.bottleneck and widths.attention.key_proj.weight.bottleneck
    model = reinitialize(bottlenecked(64), widths, ABSORBED, key=KEY)
    assert not jnp.any(model.readout.weight)
    projections = lambda m: (m.attention.query_proj, m.attention.key_proj, m.attention.value_proj)  # noqa: E731
    for projection in projections(model):
        # Deviation 1 / m at a base fan-in of 16, of which a fourth is the base deviation.
        np.testing.assert_allclose(np.std(projection.weight), 0.25 / 4, rtol=5 / (2 * 32 * 64) ** 0.5)
    scales = ABSORBED.update_scales(widths, SCALE_FREE)
    optimizer = Scaled(OptaxOptimizer(optax.adam, 1e-2), scales)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean(jnp.square(jax.vmap(eqx.combine(params, static))(images) - 1.0))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    trained, state = params, optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
        for _ in range(5):
            trained, state = step(trained, state)
    for before, after in zip(projections(params), projections(trained), strict=True):
        assert jnp.max(jnp.abs(after.weight - before.weight)) > 1e-3


@pytest.mark.filterwarnings("error")
def test_declared_bottlenecks_give_no_warning_and_two_zeros_in_a_product_are_refused():
    widths = infer_widths(bottlenecked, 16, 32, 64, roles={"attention/[qkv]*/weight": "bottleneck"})
    assert widths.attention.value_proj.weight.bottleneck and not widths.readout.weight.bottleneck
    zero_query = {"*query*weight": "output", "*key*weight": "bottleneck", "*value*": "bottleneck"}
    widths = infer_widths(bottlenecked, 16, 32, 64, roles=zero_query | {"readout/weight": "output"})
    assert not jnp.any(reinitialize(bottlenecked(64), widths, ABSORBED, key=KEY).attention.query_proj.weight)
    widths = infer_widths(bottlenecked, 16, 32, 64, roles=zero_query | {"*key*weight": "output", "readout/*": "output"})
    both = "`attention/query_proj/weight` and `attention/key_proj/weight` would both start at zero.*'bottleneck'"
    with pytest.raises(ValueError, match=both) as error:
        reinitialize(bottlenecked(64), widths, ABSORBED, key=KEY)
    assert len(str(error.value)) < 600
    with pytest.raises(ValueError, match="would both start at zero"):
        ImageClassification(toy_images(), lambda key: bottlenecked(64), widths=widths, parametrization=ABSORBED)
    reinitialize(bottlenecked(64), widths, SP(), key=KEY)


def test_layers_of_this_package_that_are_bottlenecks_are_declared_as_such():
    width = Axis.growing(64, 16)
    query, key = (Linear(width, 8, parametrization=MuP(), bottleneck=b, key=KEY) for b in (False, True))
    assert not jnp.any(query.weight) and jnp.any(key.weight)
    assert key.width.role == "output" and key.multiplier == query.multiplier == 0.25
    assert MuP().init_std(key.width) == 0.25
    build = lambda key: {"query": query, "key": query}  # noqa: E731
    with pytest.raises(ValueError, match="`query/weight` and `key/weight` would both start at zero"):
        ImageClassification(toy_images(), build)
    ImageClassification(toy_images(), lambda _: {"query": query, "key": key})


def test_several_possible_readouts_are_named_and_do_not_start_at_zero():
    build = lambda n: [eqx.nn.Linear(n, 3, key=KEY), eqx.nn.Linear(n, 5, key=KEY), eqx.nn.Linear(4, n, key=KEY)]  # noqa: E731
    with pytest.warns(UserWarning, match=r"`\*/weight`: the inputs grow"):
        assert [w.weight.bottleneck for w in infer_widths(build, 8, 16, 32)] == [True, True, False]
    with pytest.warns(UserWarning, match=r"`\*/weight`: the inputs grow"):
        found = infer_widths(build, 8, 16, 32, roles={"1/weight": "output"})
    assert [w.weight.bottleneck for w in found] == [True, False, False]


class Normed(eqx.Module):
    layers: list

    def __init__(self, width, last=lambda layer: layer, **axis):
        sizes = ((8, width), (width, width), (width, 3))
        linear = [eqx.nn.Linear(i, o, key=k) for (i, o), k in zip(sizes, jax.random.split(KEY, 3), strict=True)]
        self.layers = [eqx.nn.WeightNorm(layer, **axis) for layer in linear[:-1]] + [last(linear[-1])]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def test_weight_normalization_computes_with_the_new_weights_and_has_vectors_as_gains():
    widths = infer_widths(Normed, 16, 32, 64)
    fields = lambda w: (w.role, w.fan_in, w.fan_in_mult, w.fan_out_mult)  # noqa: E731
    assert [fields(layer.g) for layer in widths.layers[:2]] == [("vector", None, 1.0, 4.0)] * 2
    assert [layer.layer.weight.role for layer in widths.layers[:2]] == ["input", "hidden"]
    for parametrization in (ABSORBED, SP()):
        model = reinitialize(Normed(64), widths, parametrization, key=jax.random.key(1))
        for layer in model.layers[:2]:
            weight = layer.layer.weight
            np.testing.assert_allclose(layer.g, jnp.linalg.norm(weight, axis=1, keepdims=True), rtol=1e-6)
            np.testing.assert_allclose(layer(weight[0]), layer.layer(weight[0]), rtol=1e-4, atol=1e-5)
        assert jnp.all(jnp.isfinite(model(jnp.ones(8))))
    stacked = lambda n: eqx.filter_vmap(lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(n, n, key=key)))(  # noqa: E731
        jax.random.split(KEY, 5)
    )
    widths = infer_widths(stacked, 16, 32, 64)
    assert fields(widths.g) == ("vector", None, 1.0, 4.0)
    layers = reinitialize(stacked(64), widths, ABSORBED, key=KEY)
    np.testing.assert_allclose(layers.g, jnp.linalg.norm(layers.layer.weight, axis=2, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n: Normed(n, eqx.nn.WeightNorm), "`layers/2/layer/weight`, of role 'output'.*without `WeightNorm`"),
        (lambda n: Normed(n, axis=None), "`layers/0/layer/weight`.*use `axis=0`"),
        (
            lambda n: Normed(n, lambda layer: eqx.nn.SpectralNorm(layer, "weight", key=KEY)),
            "`layers/2/layer/weight`, of role 'output'.*without `SpectralNorm`",
        ),
        # Flax's `WeightNorm(Dense(3))`.
        (
            lambda n: {
                "Dense_0": {"kernel": jnp.zeros((3, n))},
                "WeightNorm_0": {"Dense_0/kernel/scale": jnp.zeros(3)},
                "first": jnp.zeros((n, 4)),
            },
            "`Dense_0/kernel`, of role 'output'",
        ),
    ],
)
def test_readouts_that_are_divided_by_their_norm_are_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        infer_widths(build, 8, 16, 32)
    assert len(str(error.value)) < 600


def language_model(width):
    return TransformerLM(64, width=width, depth=12, heads=4, max_length=16, key=KEY)


def language_model_by_depth(width):
    return TransformerLM(64, width=width, depth=12 if width == 16 else 2, heads=4, max_length=16, key=KEY)


ERRORS = {
    "a width that is ignored": (
        ValueError,
        lambda: infer_widths(lambda n: language_model(32), 16, 32, 64),
        "same shapes",
    ),
    "a model as build": (TypeError, lambda: infer_widths(language_model(16), 16, 32, 64), "`build` must be a function"),
    "a number as build": (TypeError, lambda: infer_widths(16, 16, 32, 64), "`build` must be a function.*type int"),
    "nothing": (ValueError, lambda: infer_widths(lambda n: None, 16, 32, 64), "NoneType without any floating"),
    "a function": (ValueError, lambda: infer_widths(lambda n: jnp.tanh, 16, 32, 64), "without any floating"),
    "another depth": (ValueError, lambda: infer_widths(language_model_by_depth, 16, 32, 64), "and 159 more. is not"),
    "widths of another width": (
        ValueError,
        lambda: reinitialize(language_model(32), infer_widths(language_model, 16, 32, 64), ABSORBED, key=KEY),
        "it has the shape .64, 64. at `embedding/weight` instead of .64, 32.",
    ),
    "widths of another model": (
        ValueError,
        lambda: reinitialize(language_model(32), {"w": WIDTHS["hidden"]}, ABSORBED, key=KEY),
        "it lacks `embedding/weight`",
    ),
    "a model that is not filtered": (
        ValueError,
        lambda: check_widths(infer_widths(language_model, 16, 32, 64), language_model(64)),
        "it lacks `embedding/multiplier` and .* more; call `infer_widths`",
    ),
    "a task of a model": (
        TypeError,
        lambda: ImageClassification(toy_images(), eqx.nn.MLP(2, 3, 8, 1, key=KEY)),
        "`build` must be a function.*but it is a model",
    ),
    "a task of nothing": (
        ValueError,
        lambda: ImageClassification(toy_images(), lambda key: None),
        "`build` returns a value of type NoneType",
    ),
    "widths as scales": (
        ValueError,
        lambda: scaled(infer_widths(language_model, 16, 32, 64)),
        "at `embedding/weight` got WidthSpec.*`parametrization.update_scales",
    ),
    "scales of another model": (ValueError, lambda: scaled({"w": 1.0}), "none for `embedding/weight`"),
}


def scaled(scales):
    params = eqx.filter(language_model(64), eqx.is_inexact_array)
    return Scaled(OptaxOptimizer(optax.adam, 1e-3), scales).init(params)


@pytest.mark.parametrize("name", ERRORS)
def test_common_mistakes_with_widths_get_one_short_sentence(name):
    kind, act, message = ERRORS[name]
    with pytest.raises(kind, match=message) as error:
        act()
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
