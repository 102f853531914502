import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meta_helpers import START, toy_images, toy_task

from lo_components.data import digits
from lo_components.nn import MLP
from lo_components.parametrization import SP, MuP
from lo_components.tasks import ImageClassification, Quadratic, mlp_classification

KEY = jax.random.key(0)


def scales_of(task):
    return {jax.tree_util.keystr(p): s for p, s in jax.tree_util.tree_leaves_with_path(task.update_scales)}


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
    assert jax.tree.structure(params) == jax.tree.structure(task.update_scales)


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


def test_losses_are_clipped_at_one_and_a_half_times_that_of_a_guess():
    assert toy_task().max_loss == pytest.approx(1.5 * math.log(3))
    assert mlp_classification(digits(), width=4).max_loss == pytest.approx(1.5 * math.log(10))


def test_batches_have_the_asked_size_and_split():
    task = toy_task(batch_size=5)
    images, labels = task.batch(key=KEY)
    assert images.shape == (5, 2) and labels.shape == (5,)
    pixels = {tuple(p) for p in np.asarray(task.batch(key=KEY, split="test")[0]).round(4)}
    dataset = task.dataset
    test = (np.asarray(dataset.splits["test"].images) - dataset.mean) / dataset.std
    assert pixels <= {tuple(p) for p in test.round(4)}


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"width": 0}, {"depth": 0}, {"base_width": 0}, {"width": -3}])
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
    plain, zero = (ImageClassification(dataset, build(f), parametrization=SP(), batch_size=8) for f in (1.0, 0.0))
    params = plain.init(key=jax.random.key(1))
    assert params.factor is None
    assert jax.tree.structure(plain.update_scales) == jax.tree.structure(params)
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
    assert task.max_loss == math.inf and task.update_scales is None and task.batch(key=KEY) is None
    loss, grad = jax.value_and_grad(task.loss)(params, None, key=KEY)
    np.testing.assert_allclose(loss, 0.5 * np.sum(START**2), rtol=1e-6)
    np.testing.assert_array_equal(grad, START)
