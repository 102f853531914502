import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components.nn import MLP, Linear, declared_widths
from lo_components.parametrization import SP, Axis, MuP, WidthSpec

# Of a standard normal cut at two standard deviations; the papers' networks do not correct for it.
TRUNCATED_STD = 0.8796


@pytest.mark.parametrize("parametrization", [SP(), MuP(input_mult=3.0, output_mult=5.0)], ids=["SP", "MuP"])
def test_an_mlp_computes_what_its_arrays_say(parametrization, getkey):
    model = MLP(6, 2, width=8, depth=3, parametrization=parametrization, base_width=4, key=getkey())
    readout = jax.random.normal(getkey(), (2, 8))
    model = eqx.tree_at(lambda m: m.layers[-1].weight, model, readout)
    x = jax.random.normal(getkey(), (2, 3))
    multipliers = [1.0, 1.0, 1.0, 1.0] if isinstance(parametrization, SP) else [3.0, 1.0, 1.0, 2.5]
    h = np.asarray(x, np.float64).ravel()
    for i, (layer, multiplier) in enumerate(zip(model.layers, multipliers, strict=True)):
        h = multiplier * (np.asarray(layer.weight, np.float64) @ h) + np.asarray(layer.bias, np.float64)
        h = np.maximum(h, 0) if i < 3 else h
    np.testing.assert_allclose(eqx.filter_jit(model)(x), h, rtol=1e-5, atol=1e-6)


def test_depth_counts_hidden_layers(getkey):
    for depth in (1, 3):
        model = MLP(6, 2, width=8, depth=depth, key=getkey())
        assert [layer.weight.shape for layer in model.layers] == [(8, 6), *[(8, 8)] * (depth - 1), (2, 8)]


def test_the_activation_is_the_callers(getkey):
    model = MLP(6, 2, width=8, depth=1, activation=jnp.tanh, key=getkey())
    x = jax.random.normal(getkey(), (6,))
    hidden, readout = model.layers
    np.testing.assert_allclose(model(x), readout(jnp.tanh(hidden(x))), rtol=1e-6)


@pytest.mark.parametrize("name", ["in_size", "out_size", "width", "depth", "base_width"])
def test_sizes_below_1_are_refused(name, getkey):
    sizes = dict(in_size=3, out_size=2, width=4, depth=1, base_width=1) | {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        MLP(sizes.pop("in_size"), sizes.pop("out_size"), **sizes, key=getkey())


def test_initial_logits_under_mup_are_zero_whatever_the_image(getkey):
    for base_width in (1, 8):
        model = MLP(6, 2, width=8, depth=2, parametrization=MuP(), base_width=base_width, key=getkey())
        assert not jnp.any(model.layers[-1].weight)
        np.testing.assert_array_equal(model(jax.random.normal(getkey(), (6,))), [0.0, 0.0])


def test_a_readout_of_zero_behind_a_sum_gives_zeros_also_where_all_is_compiled_together(getkey):
    """A plain `jnp.zeros` gives NaN here on CPUs with jax 0.11 and 0.12; see the FAQ."""

    def outputs(features, key):
        readout = Linear(Axis.growing(256), 10, parametrization=MuP(), key=key)
        return jax.vmap(readout)(jnp.mean(features, 2))

    features = jax.random.normal(getkey(), (64, 256, 64))
    np.testing.assert_array_equal(jax.jit(outputs)(features, getkey()), np.zeros((64, 10)))


@pytest.mark.parametrize("base_width", [1, 16, 32])
def test_biases_under_mup_have_the_same_deviation_at_every_width(base_width, getkey):
    """The base width is no exception, or networks would differ there from all others."""
    make = lambda key: MLP(3, 2, width=16, depth=2, parametrization=MuP(bias_std=0.5), base_width=base_width, key=key)  # noqa: E731
    models = eqx.filter_vmap(make)(jax.random.split(getkey(), 64))
    for layer in models.layers[:-1]:
        # 1024 draws: five standard errors are 11 %.
        np.testing.assert_allclose(jnp.std(layer.bias), 0.5, rtol=0.11)
    assert not jnp.any(models.layers[-1].bias)


@pytest.mark.parametrize("parametrization", [SP(), MuP()], ids=["SP", "MuP"])
def test_initial_weights_have_the_deviations_of_the_parametrization(parametrization, getkey):
    make = lambda key: MLP(9, 4, width=16, depth=2, parametrization=parametrization, base_width=4, key=key)  # noqa: E731
    models = eqx.filter_vmap(make)(jax.random.split(getkey(), 64))
    expected = [9**-0.5, 16**-0.5, 16**-0.5 if isinstance(parametrization, SP) else 0.0]
    for layer, std in zip(models.layers, expected, strict=True):
        tolerance = 5 / (2 * layer.weight.size) ** 0.5
        np.testing.assert_allclose(jnp.std(layer.weight), TRUNCATED_STD * std, rtol=tolerance, atol=0)
        assert jnp.max(jnp.abs(layer.weight)) <= 2 * std + 1e-6
    if isinstance(parametrization, SP):
        assert not any(jnp.any(layer.bias) for layer in models.layers)


def test_layers_of_one_model_are_drawn_independently(getkey):
    model = MLP(8, 8, width=8, depth=3, key=getkey())
    weights = [layer.weight for layer in model.layers]
    assert all(not jnp.allclose(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_declared_widths_say_how_each_array_grows(getkey):
    model = MLP(6, 2, width=8, depth=2, parametrization=MuP(), base_width=4, key=getkey())
    widths = declared_widths(model)
    assert [w.weight for w in widths.layers] == [
        WidthSpec((8, 6), "input", 6, fan_out_mult=2.0),
        WidthSpec((8, 8), "hidden", 8, fan_in_mult=2.0, fan_out_mult=2.0),
        WidthSpec((2, 8), "output", 8, fan_in_mult=2.0),
    ]
    assert [w.bias for w in widths.layers] == [
        WidthSpec((8,), "vector", fan_out_mult=2.0),
        WidthSpec((8,), "vector", fan_out_mult=2.0),
        WidthSpec((2,), "vector"),
    ]


def test_widths_are_declared_inside_any_pytree(getkey):
    layer = Linear(3, Axis.growing(4, 4), parametrization=SP(), key=getkey())
    widths = declared_widths({"first": [layer], "scale": jnp.ones(3)})
    assert widths["first"][0].weight == layer.width
    assert widths["scale"] is None
