"""Initial values: the standard deviation of every array, and outputs that do not depend on the width."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CLASSES, KEY, Separable, shape_of_model
from strategies import multipliers

from lo_components.nn import MLP, Embedding, Linear, declared_widths
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    SP,
    Absorbed,
    Axis,
    DepthMuP,
    MuP,
    infer_widths,
    reinitialize,
)

# Standard deviation of a standard normal distribution truncated at two standard deviations.
TRUNCATED_STD = 0.8796
NETWORKS = ["mlp", "cnn", "resnet", "vit", "lm", "separable"]
PARAMETRIZATIONS = {
    "SP": SP(),
    "MuP": MuP(),
    "DepthMuP": DepthMuP(4, base_depth=4),
    "Absorbed": Absorbed(MuP()),
}


def fan_ins(shapes) -> dict[str, int]:
    """The fan-in of each array, from its shape: all axes except the first; for embeddings the first axis."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(shapes, lambda x: hasattr(x, "shape"))):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_embedding = any(part in name for part in ("embedding", "positions", "class_token"))
        found[name] = leaf.shape[0] if is_embedding else int(np.prod(leaf.shape[1:]))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_declared_deviations_are_one_over_the_root_of_the_fan_in(name):
    shapes = shape_of_model(name, 32, MuP(), 16)
    specs = jax.tree_util.tree_leaves_with_path(declared_widths(shapes))
    expected = fan_ins(shapes)
    assert len(specs) == len(expected)
    for path, spec in specs:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if spec.role == "vector":
            assert (SP().init_std(spec), MuP(bias_std=0.7).init_std(spec)) == (0.0, 0.7)
            assert len(spec.shape) == 1
            continue
        assert SP().init_std(spec) == pytest.approx(expected[path] ** -0.5, rel=1e-12), path
        readout = path in ("readout/weight", "layers/2/weight")
        assert MuP().init_std(spec) == (0.0 if readout else SP().init_std(spec)), path
        assert spec.role == "output" if readout else spec.role in ("input", "hidden"), path


WIDTH = Axis.growing(48, 16)


def layers(parametrization, key):
    """One layer of each kind, large enough for statistics, with the standard deviation of its weight."""
    keys = jax.random.split(key, 5)
    common = dict(parametrization=parametrization)
    separable = Separable(48, parametrization, 16, keys[4])
    return {
        "first": (Linear(20, WIDTH, key=keys[0], **common), 20**-0.5),
        "hidden": (Linear(WIDTH, WIDTH, key=keys[1], **common), 48**-0.5),
        "conv": (separable.first, 9**-0.5),
        "depthwise": (separable.depthwise, 9**-0.5),
        "embedding": (Embedding(30, WIDTH, key=keys[3], **common), 30**-0.5),
    }


def test_drawn_deviations_are_the_declared_ones():
    """The tolerance is five standard errors; one is `1 / sqrt(2 n)` of the standard deviation."""
    for name, (layer, std) in layers(MuP(bias_std=0.5), KEY).items():
        weight = np.asarray(layer.weight)
        truncated = 1.0 if name == "embedding" else TRUNCATED_STD
        tolerance = 5 / (2 * weight.size) ** 0.5
        np.testing.assert_allclose(np.std(weight), truncated * std, rtol=tolerance, err_msg=name)
        assert abs(np.mean(weight)) < 5 * std / weight.size**0.5
        assert (np.max(np.abs(weight)) > 2 * std + 1e-6) == (name == "embedding")
        if name != "embedding":
            np.testing.assert_allclose(np.std(layer.bias), 0.5, rtol=5 / (2 * 48) ** 0.5)


def test_the_readout_starts_at_zero_under_mup_alone():
    for parametrization, zero in ((MuP(), True), (Absorbed(MuP()), True), (SP(), False)):
        readout = Linear(WIDTH, CLASSES, parametrization=parametrization, key=KEY)
        assert bool(jnp.all(readout.weight == 0)) == zero
        assert not np.any(readout.bias)


def test_the_initial_preactivations_are_of_the_same_size_at_every_width():
    """Widths 16 and 256 are compared; the standard error of 64 samples at width 16 is a few percent."""
    x = jax.random.normal(jax.random.key(1), (20,))

    @eqx.filter_jit
    def sizes(width, key):
        def one(key):
            model = MLP(20, 4, width=width, depth=2, parametrization=MuP(), base_width=16, key=key)
            found, h = [], x
            for layer in model.layers[:-1]:
                found.append(jnp.mean(jnp.square(layer(h))))
                h = jax.nn.relu(layer(h))
            return jnp.stack(found), model(x)

        return jax.vmap(one)(jax.random.split(key, 64))

    (narrow, zero), (wide, _) = sizes(16, KEY), sizes(256, KEY)
    error = np.std(narrow, axis=0, ddof=1) / 8 + np.std(wide, axis=0, ddof=1) / 8
    assert np.all(np.abs(np.mean(narrow, axis=0) - np.mean(wide, axis=0)) < 4 * error)
    assert np.all(error < 0.15 * np.mean(wide, axis=0))
    assert not np.any(zero)


@settings(max_examples=2)
@pytest.mark.parametrize("name", NETWORKS)
@given(st.sampled_from([16, 32, 48]))
def test_at_the_base_width_all_parametrizations_multiply_and_scale_by_one(name, width):
    for parametrization in PARAMETRIZATIONS.values():
        model = shape_of_model(name, width, parametrization, width)
        floats = [x for x in jax.tree.leaves(model) if isinstance(x, float)]
        assert set(floats) <= {1.0, 0.0}  # Dropout's rate is 0.
        for rule in (SCALE_FREE, PROPORTIONAL, ORTHOGONALIZED):
            assert set(jax.tree.leaves(parametrization.update_scales(declared_widths(model), rule))) == {1.0}
        for block in getattr(model, "blocks", ()):
            if hasattr(block, "attention"):
                assert block.attention.scale == pytest.approx(SP().attention_scale(Axis.fixed(width // 2)), rel=1e-12)


@given(st.integers(1, 64), st.integers(1, 32))
def test_attention_is_divided_by_the_size_of_heads_and_not_its_root(base, ratio):
    head = Axis.growing(base * ratio, base)
    assert MuP().attention_scale(head) == pytest.approx(SP().attention_scale(Axis.fixed(base)) / ratio)
    assert MuP().attention_scale(Axis.growing(base * ratio)) == pytest.approx(1 / (base * ratio))
    assert MuP().attention_scale(Axis.fixed(base)) == SP().attention_scale(Axis.fixed(base))
    for wrapper in (Absorbed(MuP()), DepthMuP(4)):
        assert wrapper.attention_scale(head) == MuP().attention_scale(head)


def test_attention_uses_the_scale_of_its_parametrization():
    """Heads have `width / heads` units."""
    for parametrization in (SP(), MuP()):
        model = shape_of_model("lm", 32, parametrization, 8)
        assert model.blocks[0].attention.scale == parametrization.attention_scale(Axis.growing(16, 4))


def test_reinitialized_models_have_the_deviations_and_keep_their_vectors():
    build = lambda n: eqx.nn.MLP(20, 40, n, 2, key=KEY)  # noqa: E731
    model, widths = build(48), infer_widths(build, 16, 24, 48)
    model = eqx.tree_at(lambda m: m.layers[0].bias, model, jnp.arange(48.0))
    for parametrization, stds in (
        (Absorbed(), (20**-0.5, 48**-0.5, 0.0)),
        (Absorbed(MuP(input_mult=3.0)), (3 * 20**-0.5, 48**-0.5, 0.0)),
        (SP(), (20**-0.5, 48**-0.5, 48**-0.5)),
    ):
        again = reinitialize(model, widths, parametrization, key=jax.random.key(1))
        for layer, before, std in zip(again.layers, model.layers, stds, strict=True):
            np.testing.assert_allclose(np.std(layer.weight), std, rtol=5 / (2 * layer.weight.size) ** 0.5)
            np.testing.assert_array_equal(layer.bias, before.bias)
    with pytest.raises(ValueError, match="`widths` must have one `WidthSpec` of the right shape"):
        reinitialize(model, infer_widths(build, 16, 24, 32), Absorbed(), key=KEY)


def test_forward_multipliers_that_a_model_does_not_apply_are_refused():
    build = lambda n: eqx.nn.MLP(20, 40, n, 2, key=KEY)  # noqa: E731
    widths = infer_widths(build, 16, 24, 48)
    message = (
        r"The output of `layers/2/weight` must be multiplied by 0.333 .* use `Absorbed\(MuP\(\)\)` in place of `MuP"
    )
    with pytest.raises(TypeError, match=message):
        reinitialize(build(48), widths, MuP(), key=KEY)
    with pytest.raises(TypeError, match=message):
        MuP().update_scales(widths, SCALE_FREE)
    # Layers of this package apply them, also where their widths are inferred.
    ours = lambda n: MLP(20, 40, width=n, depth=2, parametrization=MuP(), base_width=16, key=KEY)  # noqa: E731
    MuP().update_scales(infer_widths(ours, 16, 24, 48), SCALE_FREE)


@given(multipliers, multipliers, multipliers)
def test_hyper_multipliers_reach_their_layers_and_no_others(input_mult, output_mult, hidden_mult):
    p = MuP(input_mult=input_mult, output_mult=output_mult, hidden_mult=hidden_mult)
    lm = shape_of_model("lm", 32, p, 8)
    assert lm.embedding.multiplier == lm.positions.multiplier == input_mult
    assert lm.readout.multiplier == pytest.approx(output_mult / 4)
    assert lm.blocks[0].mlp_in.multiplier == lm.blocks[0].attention.query.multiplier == 1.0
    scales = p.update_scales(declared_widths(lm), SCALE_FREE)
    assert scales.blocks[0].mlp_out.weight == pytest.approx(hidden_mult / 4)
    assert scales.embedding.weight == scales.readout.weight == 1.0


def test_residual_branches_are_declared_as_such_and_multiplied():
    """All arrays inside blocks are residual, except the shortcuts of a ResNet, and none outside."""
    p = DepthMuP(8, base_depth=2)
    for name in ("vit", "lm", "resnet"):
        model = shape_of_model(name, 32, p, 16)
        for path, spec in jax.tree_util.tree_leaves_with_path(declared_widths(model)):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            assert spec.residual == ("blocks" in path and "shortcut" not in path), path
        assert {block.residual_multiplier for block in model.blocks} == {0.25}
