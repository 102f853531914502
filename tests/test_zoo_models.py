"""The optimizees beyond the MLP: against other implementations, published sizes, and what each must not see."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components import nn
from lo_components.nn import _layers
from lo_components.parametrization import SP, Axis, DepthMuP, MuP

KEY = jax.random.key(0)
W8 = Axis.growing(8)


def count(build):
    shapes = eqx.filter_eval_shape(build, KEY)
    return sum(x.size for x in jax.tree.leaves(shapes) if isinstance(x, jax.ShapeDtypeStruct))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda key: nn.ResNet(3, 10, key=key), 11_173_962),
        (
            lambda key: nn.ResNet(
                3, 1000, blocks=(3, 4, 6, 3), bottleneck=True, norm=nn.BatchNorm, large_stem=True, key=key
            ),
            25_557_032,
        ),
        (lambda key: nn.ViT((224, 224, 3), 1000, key=key), 5_717_416),
        (lambda key: nn.ViT((224, 224, 3), 1000, width=384, heads=6, key=key), 22_050_664),
    ],
    ids=["ResNet-18 with a 3x3 stem", "ResNet-50", "DeiT-tiny", "DeiT-small"],
)
def test_published_models_have_their_published_number_of_parameters(build, expected):
    assert count(build) == expected


@pytest.mark.parametrize(("stride", "depthwise"), [(1, False), (2, False), (1, True)])
def test_a_convolution_is_that_of_equinox(stride, depthwise, getkey):
    channels = W8 if depthwise else 3
    conv = nn.Conv(channels, W8, kernel_size=3, stride=stride, depthwise=depthwise, parametrization=MuP(), key=getkey())
    size = 8 if depthwise else 3
    reference = eqx.nn.Conv2d(size, 8, 3, stride, padding="SAME", groups=size if depthwise else 1, key=getkey())
    reference = eqx.tree_at(lambda c: (c.weight, c.bias), reference, (conv.weight, conv.bias[:, None, None]))
    x = jax.random.normal(getkey(), (6, 4, size))
    expected = jnp.moveaxis(reference(jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(conv(x), expected, rtol=1e-5, atol=1e-5)
    assert conv.width.role == "input" and conv.width.fan_in == (9 if depthwise else 27)


def test_multipliers_of_the_parametrization_reach_every_kind_of_layer(getkey):
    mup = MuP(input_mult=3.0)
    for make in (
        lambda p, key: nn.Linear(3, W8, parametrization=p, use_bias=False, key=key),
        lambda p, key: nn.Conv(3, W8, kernel_size=1, parametrization=p, use_bias=False, key=key),
        lambda p, key: nn.Embedding(5, W8, parametrization=p, key=key),
    ):
        key = getkey()
        x = jnp.arange(2) if make(mup, key).weight.shape == (5, 8) else jnp.ones((2, 2, 3))
        np.testing.assert_allclose(make(mup, key)(x), 3.0 * make(MuP(), key)(x), rtol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_norms_are_those_of_equinox(norm, getkey):
    x = 3.0 + 2.0 * jax.random.normal(getkey(), (4, 5, 8))
    scale, offset = jax.random.normal(getkey(), (2, 8))
    ours = nn.LayerNorm(W8) if norm == "layer" else nn.GroupNorm(W8, groups=2)
    ours = eqx.tree_at(lambda n: (n.scale, n.offset), ours, (scale, offset))
    if norm == "layer":
        theirs = eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.LayerNorm(8, eps=1e-6), (scale, offset))
        expected = jax.vmap(jax.vmap(theirs))(x)
    else:
        theirs = eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.GroupNorm(2, 8, eps=1e-6), (scale, offset))
        expected = jnp.moveaxis(theirs(jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_standardizes_over_the_batch_and_its_positions(getkey):
    x = 3.0 + 2.0 * jax.random.normal(getkey(), (6, 4, 5, 8))
    y = jax.vmap(nn.BatchNorm(W8), axis_name="batch")(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1.0, rtol=1e-4)


def test_examples_of_weight_zero_do_not_change_batch_statistics(getkey):
    x = jax.random.normal(getkey(), (6, 4, 5, 8))
    norm = nn.BatchNorm(W8)
    alone = jax.vmap(norm, axis_name="batch")(x[:4])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    both = jax.vmap(lambda y, w: norm(y, weight=w), axis_name="batch")(x.at[4:].mul(100.0), weights)
    np.testing.assert_allclose(both[:4], alone, rtol=1e-5, atol=1e-5)


def test_attention_is_that_of_equinox_under_sp(getkey):
    attention = nn.Attention(W8, heads=2, causal=False, parametrization=SP(), key=getkey())
    theirs = eqx.nn.MultiheadAttention(
        2, 8, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=getkey()
    )
    ours = [attention.query, attention.key, attention.value, attention.out]

    def projections(m):
        return [m.query_proj, m.key_proj, m.value_proj, m.output_proj]

    theirs = eqx.tree_at(lambda m: [p.weight for p in projections(m)], theirs, [p.weight for p in ours])
    theirs = eqx.tree_at(lambda m: [p.bias for p in projections(m)], theirs, [p.bias for p in ours])
    x = jax.random.normal(getkey(), (5, 8))
    np.testing.assert_allclose(attention(x), theirs(x, x, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "scale"), [(Axis.growing(16), 1 / 8), (Axis.growing(16, 4), 2**0.5 / 8), (Axis.fixed(16), 8**-0.5)]
)
def test_attention_logits_under_mup_are_divided_by_the_size_of_a_growing_head(width, scale):
    attention = eqx.filter_eval_shape(nn.Attention, width, heads=2, causal=True, parametrization=MuP(), key=KEY)
    assert attention.scale == pytest.approx(scale, rel=1e-12)


@pytest.fixture(scope="module")
def language_model():
    return eqx.filter_jit(nn.TransformerLM(11, width=8, depth=2, heads=2, key=KEY))


def test_a_language_model_sees_only_the_past(language_model):
    model = language_model
    tokens = jnp.array([1, 2, 3, 4, 5])
    changed = tokens.at[3].set(9)
    np.testing.assert_allclose(model(tokens)[:3], model(changed)[:3], rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(model(tokens)[3:] - model(changed)[3:]).max(axis=1) > 1e-3)


def test_without_positions_one_block_sees_the_past_as_a_set():
    model = eqx.filter_jit(nn.TransformerLM(11, width=8, depth=1, heads=2, key=KEY))
    np.testing.assert_allclose(
        model(jnp.array([1, 2, 3, 4, 5]))[-1], model(jnp.array([3, 1, 2, 4, 5]))[-1], rtol=1e-4, atol=1e-5
    )


def test_with_positions_the_order_matters():
    model = eqx.filter_jit(nn.TransformerLM(11, width=8, depth=1, heads=2, max_length=5, key=KEY))
    assert not np.allclose(model(jnp.array([1, 2, 3, 4, 5]))[-1], model(jnp.array([3, 1, 2, 4, 5]))[-1], atol=1e-3)


def test_dropout_acts_only_where_there_is_a_key():
    model = eqx.filter_jit(nn.TransformerLM(11, width=8, depth=1, heads=2, dropout=0.5, key=KEY))
    tokens = jnp.array([1, 2, 3])
    np.testing.assert_array_equal(model(tokens), model(tokens))
    assert not np.allclose(model(tokens, key=jax.random.key(1)), model(tokens, key=jax.random.key(2)), atol=1e-3)


def test_patches_of_a_vision_transformer_are_squares_of_the_image():
    model = nn.ViT((4, 6, 3), 2, patch_size=2, width=4, depth=1, heads=1, key=KEY)
    image = jnp.arange(72.0).reshape(4, 6, 3)
    seen = {}

    class Spy(eqx.Module):
        def __call__(self, x):
            seen["patches"] = x
            return jnp.zeros((x.shape[0], 4))

    eqx.tree_at(lambda m: m.patches, model, Spy())(image)
    expected = [image[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2, 4)]
    np.testing.assert_array_equal(seen["patches"], np.stack(expected))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3), (2, 9)])
@pytest.mark.parametrize("kernel_size, stride", [(3, 1), (3, 2), (1, 2), (7, 2), (4, 4), (2, 3)])
def test_the_product_of_patches_is_the_convolution(size, kernel_size, stride):
    x, weight = jax.random.normal(KEY, (*size, 3)), jax.random.normal(KEY, (5, 3, kernel_size, kernel_size))
    expected = _layers._convolved(x, weight, stride=stride, groups=1)
    np.testing.assert_allclose(_layers._product_of_patches(x, weight, stride=stride), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.TransformerLM(9, width=9, depth=1, heads=2, key=KEY), "`width` must be a multiple of `heads`"),
        (lambda: nn.Autoencoder(9, width=6, key=KEY), "`width` must be a multiple of 4"),
        (lambda: nn.Autoencoder(9, width=8, base_width=2, key=KEY), "`base_width` must be a multiple of 4"),
        (lambda: nn.ViT((7, 8), 2, patch_size=4, width=4, depth=1, heads=1, key=KEY), "multiple of `patch_size`"),
        (lambda: nn.ResNet(3, 2, width=96, key=KEY), "`width` must be a multiple of 8 channels times 8"),
        (lambda: nn.CNN(3, 2, width=7, key=KEY), "must be even"),
        (lambda: nn.ViT((8, 8), 2, patch_size=4, width=0, depth=1, heads=1, key=KEY), "`width` must be at least 1"),
        (lambda: nn.GroupNorm(6, groups=4), "multiple of `groups`"),
        (lambda: nn.GroupNorm(6, groups=0), "at least 1 of `groups`, got 0"),
        (lambda: nn.Conv(3, 4, kernel_size=3, depthwise=True, parametrization=SP(), key=KEY), "(?i)depthwise"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


MODELS = {
    "cnn": lambda **kw: nn.CNN(1, 3, width=8, **kw),
    "resnet": lambda **kw: nn.ResNet(1, 3, blocks=(1, 1), width=16, **kw),
    "bottleneck": lambda **kw: nn.ResNet(1, 3, blocks=(1,), bottleneck=True, width=8, norm=nn.BatchNorm, **kw),
    "vit": lambda **kw: nn.ViT((8, 8), 3, patch_size=4, width=8, depth=1, heads=2, **kw),
    "lm": lambda **kw: nn.TransformerLM(3, width=8, depth=1, heads=2, max_length=4, **kw),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_starts_at_zero_under_mup_and_learns_in_every_array(name):
    model = MODELS[name](parametrization=MuP(), key=KEY)
    inputs = jnp.array([[0, 1, 2, 1], [2, 2, 1, 0]]) if name == "lm" else jax.random.normal(KEY, (2, 8, 8))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def outputs(params):
        return jax.vmap(eqx.combine(params, static), axis_name="batch")(inputs)

    assert not np.any(eqx.filter_jit(outputs)(params))
    # Behind a zero readout nothing else has a gradient; a readout of ones would make classes equal.
    readout = jax.random.normal(jax.random.key(1), model.readout.weight.shape)
    params = eqx.tree_at(lambda p: p.readout.weight, params, readout)
    grads = jax.jit(jax.grad(lambda p: jnp.mean(jnp.sin(outputs(p)))))(params)
    silent = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(grad) or not np.isfinite(grad).all()
    ]
    # A constant added to all keys changes no softmax.
    assert [path for path in silent if not path.endswith("attention.key.bias")] == []


@pytest.mark.parametrize("name", MODELS)
def test_declared_widths_have_the_structure_and_shapes_of_the_arrays(name):
    model = eqx.filter_eval_shape(lambda key: MODELS[name](parametrization=MuP(), key=key), KEY)
    arrays = eqx.filter(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    widths = nn.declared_widths(model)
    assert jax.tree.structure(widths) == jax.tree.structure(arrays)
    assert [w.shape for w in jax.tree.leaves(widths)] == [x.shape for x in jax.tree.leaves(arrays)]


@pytest.mark.parametrize(("name", "branches"), [("resnet", ["blocks"]), ("vit", ["blocks"])])
def test_arrays_of_residual_branches_are_declared_so(name, branches):
    model = eqx.filter_eval_shape(lambda key: MODELS[name](parametrization=MuP(), key=key), KEY)
    for path, width in jax.tree_util.tree_leaves_with_path(nn.declared_widths(model)):
        inside = path[0].name in branches and "shortcut" not in jax.tree_util.keystr(path)
        assert width.residual == inside, jax.tree_util.keystr(path)


def test_residual_branches_are_multiplied_by_the_parametrizations_factor(getkey):
    x, key = jax.random.normal(getkey(), (3, 8)), getkey()

    def block(parametrization):
        return nn.TransformerBlock(W8, heads=2, causal=False, parametrization=parametrization, key=key)

    plain = block(MuP())
    y = x + 0.25 * plain.attention(plain.attention_norm(x))
    y = y + 0.25 * plain.mlp_out(jax.nn.gelu(plain.mlp_in(plain.mlp_norm(y))))
    np.testing.assert_allclose(block(DepthMuP(depth=8, base_depth=2))(x), y, rtol=1e-5, atol=1e-5)


def test_sequences_and_images_of_another_size_are_refused():
    model = nn.TransformerLM(11, width=8, depth=1, heads=2, max_length=4, key=KEY)
    with pytest.raises(ValueError, match="at most 4 tokens, the `max_length`"):
        eqx.filter_eval_shape(model, jnp.zeros(5, jnp.int32))
    with pytest.raises(ValueError, match="the size of the `image_shape`"):
        eqx.filter_eval_shape(nn.ViT((8, 8), 2, patch_size=4, width=4, depth=1, heads=1, key=KEY), jnp.zeros((8, 4)))


def test_weights_between_sides_that_do_not_grow_start_like_others():
    for parametrization in (SP(), MuP()):
        layer = nn.Linear(1, 400, parametrization=parametrization, key=KEY)
        assert layer.width.role == "vector"
        # 400 draws of a normal distribution cut at two deviations.
        np.testing.assert_allclose(jnp.std(layer.weight), 0.88, rtol=0.15)
