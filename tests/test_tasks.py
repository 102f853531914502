import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meta_helpers import START, toy_images, toy_task

from lo_components.data import TokenDataset, digits, image_dataset
from lo_components.nn import MLP, BatchNorm
from lo_components.parametrization import PROPORTIONAL, SCALE_FREE, SP, Absorbed, MuP, infer_widths
from lo_components.tasks import (
    Autoencoding,
    ImageClassification,
    LinearRegression,
    Quadratic,
    cnn_classification,
    image_autoencoding,
    language_modeling,
    mlp_classification,
    resnet_classification,
    vit_classification,
)

KEY = jax.random.key(0)


def scales_of(task, rule=SCALE_FREE):
    scales = task.parametrization.update_scales(task.widths, rule)
    return {jax.tree_util.keystr(p): s for p, s in jax.tree_util.tree_leaves_with_path(scales)}


def test_the_loss_of_zero_logits_is_the_logarithm_of_the_number_of_classes():
    task = mlp_classification(digits(), width=4, parametrization=MuP(), batch_size=16)  # MuP's readout starts at zero
    params = task.init(key=KEY)
    np.testing.assert_allclose(task.loss(params, task.batch(key=KEY), key=KEY), math.log(10), rtol=1e-6)


def test_the_loss_is_the_mean_cross_entropy():
    task = toy_task()
    params = task.init(key=jax.random.key(4))
    images, labels = task.batch(key=KEY)
    x = np.asarray(images, np.float64)
    for layer in params.layers[:-1]:
        x = np.maximum(0, x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias))
    logits = x @ np.asarray(params.layers[-1].weight, np.float64).T + np.asarray(params.layers[-1].bias)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean(log_softmax[np.arange(8), np.asarray(labels)])
    assert abs(expected - math.log(3)) > 0.01
    np.testing.assert_allclose(task.loss(params, (images, labels), key=KEY), expected, rtol=1e-5)


def test_params_hold_only_arrays_and_keep_the_models_structure():
    task = toy_task()
    params = task.init(key=KEY)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(params)] == [
        (shape, jnp.float32) for shape in [(4, 2), (4,), (4, 4), (4,), (3, 4), (3,)]
    ]
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
    assert jax.tree.structure(params) == jax.tree.structure(task.widths)


def test_initial_parameters_depend_on_the_key():
    task = toy_task()
    first, again, other = (task.init(key=jax.random.key(key)).layers[0].weight for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.asarray(first) == np.asarray(other))


@pytest.mark.parametrize("parametrization", [SP(), MuP()])
def test_gradients_are_finite_and_reach_every_parameter(parametrization):
    task = toy_task(parametrization=parametrization)
    params = jax.tree.map(lambda x: x + 0.1, task.init(key=KEY))
    grads = jax.jit(jax.grad(task.loss))(params, task.batch(key=KEY), key=KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.all(np.isfinite(g)) and np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))


def test_the_standard_parametrization_scales_nothing():
    scales = scales_of(toy_task(parametrization=SP()))
    assert set(scales.values()) == {1.0} and len(scales) == 6


@pytest.mark.parametrize(("base_width", "expected"), [(1, 1 / 8), (4, 1 / 2), (8, 1.0)])
def test_mup_scales_hidden_weights_alone(base_width, expected):
    scales = scales_of(toy_task(parametrization=MuP(), width=8, depth=3, base_width=base_width))
    hidden = {".layers[1].weight", ".layers[2].weight"}
    assert {path: scale for path, scale in scales.items() if path in hidden} == dict.fromkeys(hidden, expected)
    assert {scale for path, scale in scales.items() if path not in hidden} == {1.0} and len(scales) == 8
    assert all(type(scale) is float for scale in scales.values())


def test_images_larger_than_the_base_models_scale_the_first_layer_as_a_hidden_one():
    scales = scales_of(toy_task(parametrization=MuP(), width=8, base_width=8, base_in_size=1))
    assert scales.pop(".layers[0].weight") == 1 / 2 and set(scales.values()) == {1.0}
    scales = scales_of(toy_task(parametrization=MuP(), width=8, base_width=4, base_in_size=1), PROPORTIONAL)
    assert scales[".layers[0].weight"] == 2 / 2


def test_losses_are_clipped_at_one_and_a_half_times_that_of_a_guess():
    assert toy_task().max_loss == pytest.approx(1.5 * math.log(3))
    assert mlp_classification(digits(), width=4).max_loss == pytest.approx(1.5 * math.log(10))


def test_batches_have_the_asked_size_and_split():
    task = toy_task(batch_size=5)
    images, labels = task.batch(key=KEY)
    assert images.shape == (5, 2) and labels.shape == (5,)
    pixels = {tuple(p) for p in np.asarray(task.batch(key=KEY, split="test")[0]).round(4)}
    dataset = task.dataset
    test = np.asarray((dataset.splits["test"].images - dataset.mean) / dataset.std)
    assert pixels <= {tuple(p) for p in test.round(4)}


@pytest.mark.parametrize(
    "sizes", [{"batch_size": 0}, {"width": 0}, {"depth": 0}, {"base_width": 0}, {"base_in_size": 0}, {"width": -3}]
)
def test_impossible_sizes_are_refused_by_name(sizes):
    (name,) = sizes
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {sizes[name]}"):
        toy_task(**sizes)


def test_a_model_of_ones_own_keeps_its_constants_out_of_the_parameters():
    class Scaled(eqx.Module):
        model: MLP
        factor: float

        def __call__(self, x):
            return self.factor * self.model(x)

    def build(factor):
        return lambda key: Scaled(MLP(2, 3, width=4, depth=1, key=key), factor)

    dataset = toy_images()
    plain, zero = (ImageClassification(dataset, build(f), batch_size=8) for f in (1.0, 0.0))
    params = plain.init(key=jax.random.key(1))
    assert params.factor is None
    assert jax.tree.structure(plain.widths) == jax.tree.structure(params)
    batch = plain.batch(key=KEY)
    np.testing.assert_allclose(zero.loss(params, batch, key=KEY), math.log(3), rtol=1e-6)
    assert abs(plain.loss(params, batch, key=KEY) - math.log(3)) > 0.01


def test_a_task_passes_through_jit():
    task = toy_task()
    params, batch = task.init(key=KEY), task.batch(key=KEY)
    jitted = eqx.filter_jit(lambda task: task.loss(params, batch, key=KEY))(task)
    np.testing.assert_allclose(jitted, task.loss(params, batch, key=KEY), rtol=1e-6)


def test_quadratic():
    task = Quadratic(jnp.asarray(START))
    params = task.init(key=KEY)
    np.testing.assert_array_equal(params, START)
    assert task.max_loss == math.inf and task.widths is None and task.batch(key=KEY) is None
    loss, grad = jax.value_and_grad(task.loss)(params, None, key=KEY)
    np.testing.assert_allclose(loss, 0.5 * np.sum(START**2), rtol=1e-6)
    np.testing.assert_array_equal(grad, START)


def small_images():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    return image_dataset({"train": (pixels, np.arange(7) % 3)}, num_classes=3, name="small images")


def toy_tokens():
    tokens = jax.random.randint(KEY, (6, 5), 1, 7)
    return TokenDataset({"train": tokens.at[:, 4].set(0)}, 7)


@pytest.mark.parametrize(
    "task",
    [
        cnn_classification(small_images(), width=4, batch_size=2),
        resnet_classification(small_images(), blocks=(1,), width=8, norm=BatchNorm, batch_size=2),
        vit_classification(small_images(), patch_size=2, width=4, depth=1, heads=2, batch_size=2),
        image_autoencoding(small_images(), width=4, batch_size=2),
        language_modeling(toy_tokens(), width=4, depth=1, positions=True, dropout=0.1, batch_size=2),
    ],
    ids=["cnn", "resnet", "vit", "autoencoder", "lm"],
)
def test_every_kind_of_task_has_a_finite_loss_and_gradients_with_a_scale_each(task):
    params = task.init(key=KEY)
    assert jax.tree.structure(params) == jax.tree.structure(task.widths)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, task.batch(key=KEY), key=KEY)))(params)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert 0 < loss < task.max_loss


def test_an_autoencoder_is_compared_with_pixels_from_0_to_1():
    task = image_autoencoding(small_images(), width=4, batch_size=3)
    params = jax.tree.map(jnp.zeros_like, task.init(key=KEY))  # all outputs are 1/2
    pixels = np.asarray(small_images().splits["train"].images) / np.max(small_images().splits["train"].images)
    np.testing.assert_allclose(
        task.metrics(params, split="train", key=KEY)["loss"], np.mean((pixels - 0.5) ** 2), rtol=1e-5
    )
    batch = task.batch(key=KEY)
    np.testing.assert_allclose(task.loss(params, batch, key=KEY), np.mean((batch[0] - 0.5) ** 2), rtol=1e-5)
    assert [layer.weight.shape for layer in params.layers] == [(4, 48), (1, 4), (4, 1), (48, 4)]


def test_a_model_of_equinox_is_an_autoencoder():
    def build(width, key):
        return eqx.nn.Sequential(
            [eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(48, 48, width, 1, final_activation=jax.nn.sigmoid, key=key)]
        )

    widths = infer_widths(lambda width: build(width, KEY), 4, 8, 16)
    task = Autoencoding(
        small_images(), eqx.Partial(build, 16), widths=widths, parametrization=Absorbed(MuP()), batch_size=3
    )
    params = task.init(key=KEY)
    assert jax.tree.structure(task.widths) == jax.tree.structure(params)
    assert 0 < task.loss(params, task.batch(key=KEY), key=KEY) < task.max_loss
    assert sorted(set(scales_of(task).values())) == [0.25, 1.0]


def test_the_loss_of_a_language_model_leaves_padding_out():
    task = language_modeling(toy_tokens(), width=4, depth=1, parametrization=MuP(), batch_size=4)
    params = task.init(key=KEY)
    # A bias that makes padding unlikely and the other tokens equal.
    params = eqx.tree_at(lambda p: p.readout.bias, params, jnp.array([-50.0, 0, 0, 0, 0, 0, 0]))
    loss = jax.jit(lambda tokens: task.loss(params, tokens, key=KEY))
    np.testing.assert_allclose(loss(task.batch(key=KEY)), math.log(6), rtol=1e-5)
    assert loss(jnp.zeros((4, 5), jnp.int32)) == 0.0


def test_the_loss_of_a_language_model_is_that_of_the_next_token():
    task = language_modeling(toy_tokens(), width=4, depth=1, parametrization=MuP(), batch_size=4)
    params = eqx.tree_at(lambda p: p.readout.bias, task.init(key=KEY), jnp.array([0.0, 0, 0, 0, 0, 9, 0]))
    loss = jax.jit(lambda tokens: task.loss(params, tokens, key=KEY))
    assert loss(jnp.array([[1, 5, 5]])) < 0.01 and loss(jnp.array([[5, 1, 1]])) > 8.0


def test_expected_loss_of_a_linear_regression_is_the_mean_of_its_losses():
    task = LinearRegression(jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25]), noise=0.5, batch_size=4096)
    params = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(task.expected_loss(params), 0.5 * (4 * 0.25 + 0.25 * 9 + 0.25), rtol=1e-6)
    losses = [task.loss(params, task.batch(key=jax.random.key(i)), key=KEY) for i in range(4)]
    # 16,384 draws of a variable with a relative deviation of about 1.5: five standard errors are 6 %.
    np.testing.assert_allclose(np.mean(losses), task.expected_loss(params), rtol=0.06)
    with pytest.raises((ValueError, TypeError), match="spectrum"):
        LinearRegression(jnp.ones(2), jnp.ones(3))


def test_evaluation_goes_over_every_example_once():
    task = toy_task(batch_size=7)
    params = task.init(key=KEY)
    examples = task.dataset.splits["train"]
    images, labels = examples.images, np.asarray(examples.labels)
    logits = jax.vmap(task.model(params))((images.astype(jnp.float32) - task.dataset.mean) / task.dataset.std)
    log_softmax = np.asarray(jax.nn.log_softmax(logits))
    found = task.metrics(params, split="train", key=KEY)
    assert len(labels) % task.batch_size
    np.testing.assert_allclose(found["loss"], -log_softmax[np.arange(len(labels)), labels].mean(), rtol=1e-4)
    np.testing.assert_allclose(found["accuracy"], np.mean(log_softmax.argmax(axis=1) == labels), rtol=1e-6)


def test_evaluation_of_a_batch_normalized_model_does_not_depend_on_the_other_images():
    tasks = [
        resnet_classification(small_images(), blocks=(1,), width=8, norm=BatchNorm, batch_size=size) for size in (1, 3)
    ]
    params = tasks[0].init(key=KEY)
    one, three = (t.metrics(params, split="train", key=KEY) for t in tasks)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(one[name], three[name], rtol=1e-4)


def test_models_of_others_are_tasks_once_their_widths_are_given():
    build = lambda width, key: eqx.nn.MLP(2, 3, width, 1, key=key)  # noqa: E731
    widths = infer_widths(lambda width: build(width, KEY), 4, 8, 16)
    task = ImageClassification(toy_images(), lambda key: build(16, key), parametrization=Absorbed(), widths=widths)
    assert scales_of(task) == dict.fromkeys(scales_of(task), 1.0) | {".layers[1].weight": 1 / 4}
    params = task.init(key=KEY)
    assert not jnp.any(params.layers[1].weight) and jnp.any(params.layers[0].weight)
    plain = ImageClassification(toy_images(), lambda key: build(16, key), parametrization=SP(), widths=widths)
    assert eqx.tree_equal(plain.init(key=KEY), eqx.filter(build(16, KEY), eqx.is_inexact_array))
    with pytest.raises(TypeError, match=r"`Absorbed\(MuP\(\)\)` or `SP\(\)`.*got MuP"):
        ImageClassification(toy_images(), lambda key: build(16, key), parametrization=MuP(), widths=widths)
    with pytest.raises(ValueError, match="infer_widths"):
        ImageClassification(toy_images(), lambda key: build(16, key), parametrization=Absorbed())
    with pytest.raises(ValueError, match="`widths` must have one"):
        ImageClassification(toy_images(), lambda key: build(16, key), parametrization=Absorbed(), widths=[widths])


def test_models_whose_layers_are_scaled_already_are_not_scaled_twice():
    task = toy_task(parametrization=MuP())
    with pytest.raises(ValueError, match="built with MuP.*scales them already"):
        ImageClassification(toy_images(), task.trained.build, widths=task.widths, parametrization=Absorbed())


def test_multipliers_may_be_arrays():
    scale = scales_of(toy_task(parametrization=MuP(hidden_mult=jnp.asarray(2.0)), width=8, base_width=4))
    np.testing.assert_allclose(scale[".layers[1].weight"], 1.0)

    def loss(multiplier):
        task = toy_task(parametrization=MuP(hidden_mult=multiplier), width=8, base_width=4)
        return scales_of(task)[".layers[1].weight"]

    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(jnp.array([1.0, 3.0])), [0.5, 1.5])


def test_the_parametrization_of_a_models_layers_is_found():
    def build(first, second):
        def model(key):
            return [MLP(2, 3, width=4, depth=1, parametrization=p, key=key) for p in (first, second)]

        return model

    mup = MuP(hidden_mult=2.0)
    assert ImageClassification(toy_images(), build(mup, mup)).parametrization == mup
    assert ImageClassification(toy_images(), build(mup, mup), parametrization=mup).parametrization == mup
    with pytest.raises(ValueError, match="layers were built with different parametrizations"):
        ImageClassification(toy_images(), build(mup, SP()))
    with pytest.raises(ValueError, match="layers were built with MuP.*leave it out"):
        ImageClassification(toy_images(), build(mup, mup), parametrization=SP())


def test_models_with_arrays_that_are_not_trained_are_refused():
    class Permuted(eqx.Module):
        order: jax.Array
        mlp: MLP

        def __init__(self, key):
            self.order, self.mlp = jnp.arange(2)[::-1], MLP(2, 3, width=4, depth=1, key=key)

    with pytest.raises(ValueError, match="array of int32 at `order`"):
        ImageClassification(toy_images(), Permuted)


def test_widths_of_another_width_are_refused():
    build = lambda width, key: eqx.nn.MLP(2, 3, width, 1, key=key)  # noqa: E731
    widths = infer_widths(lambda width: build(width, KEY), 4, 8, 32)
    with pytest.raises(ValueError, match="of the right shape"):
        ImageClassification(toy_images(), lambda key: build(16, key), parametrization=Absorbed(), widths=widths)


def test_evaluation_of_a_language_model_goes_over_every_token_once_without_dropout():
    rng = np.random.default_rng(0)
    splits = {
        "train": jnp.asarray(rng.integers(0, 9, (8, 6)), jnp.int32),
        "test": jnp.asarray(rng.integers(0, 9, (7, 6))),
    }
    dataset = TokenDataset({k: v.astype(jnp.int32) for k, v in splits.items()}, 9, pad_id=0)
    task = language_modeling(dataset, width=8, depth=1, heads=2, batch_size=3, dropout=0.5)
    params = task.init(key=KEY)
    tokens = np.asarray(dataset.splits["test"])
    logits = jax.vmap(task.model(params))(tokens[:, :-1])
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, 1:, None], 2)[..., 0]
    test, train = (task.metrics(params, split=split, key=KEY)["loss"] for split in ("test", "train"))
    np.testing.assert_allclose(test, losses[tokens[:, 1:] != 0].mean(), rtol=1e-5)
    assert abs(train - test) > 1e-4


def test_without_padding_every_token_counts():
    tokens = TokenDataset({"train": jnp.zeros((2, 5), jnp.int32)}, 7, pad_id=None)
    task = language_modeling(tokens, width=4, depth=1, parametrization=MuP(), batch_size=2)
    loss = jax.jit(lambda tokens: task.loss(task.init(key=KEY), tokens, key=KEY))
    np.testing.assert_allclose(loss(tokens.splits["train"]), math.log(7), rtol=1e-5)


def test_an_unknown_split_is_refused_by_evaluation():
    task = toy_task()
    with pytest.raises(ValueError, match="`split` must be one of"):
        task.metrics(task.init(key=KEY), split="tset", key=KEY)
