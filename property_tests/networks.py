"""The networks that the laws train, and how.

Compilation is what these tests spend their time on. So tasks and optimizers are built once and everything that a law
draws (seeds, learning rates, meta-parameters, multipliers, even the choice of Adam or SGD) is an array in them.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from lo_components import recipes, tasks
from lo_components.data import TokenDataset, image_dataset
from lo_components.nn import CNN, MLP, BatchNorm, Conv, GroupNorm, Linear, ResNet, TransformerLM, ViT
from lo_components.optimizers import SGD, AbstractOptimizer, Adam, StepContext
from lo_components.parametrization import Axis, MuP

KEY = jax.random.key(0)
CLASSES, VOCAB, LENGTH = 4, 16, 8


class AdamOrSGD(AbstractOptimizer):
    """Adam where `adam` is true, plain SGD where it is not."""

    learning_rate: Float[Array, ""]
    adam: Bool[Array, ""]

    def init(self, params):
        return Adam(self.learning_rate).init(params)

    def update(self, grads, state, params, *, context: StepContext = StepContext()):
        # An epsilon that is negligible beside any gradient: muP divides gradients by the width.
        by_adam, state = Adam(self.learning_rate, eps=1e-15).update(grads, state, params)
        by_sgd, _ = SGD(self.learning_rate).update(grads, SGD(self.learning_rate).init(params), params)
        return jax.tree.map(lambda a, b: jnp.where(self.adam, a, b), by_adam, by_sgd), state


def adam(learning_rate: float) -> AdamOrSGD:
    return AdamOrSGD(jnp.float32(learning_rate), jnp.asarray(True))


def sgd(learning_rate: float) -> AdamOrSGD:
    return AdamOrSGD(jnp.float32(learning_rate), jnp.asarray(False))


@functools.cache
def _learned(hidden_size: int):
    return recipes.small_fc_lopt(
        hidden_size=hidden_size, step_mult=1e-2, momentum_decays=(0.9,), factored_decays=(0.9,), key=KEY
    )


def learned(seed: int, theta_scale: float = 1.0) -> AbstractOptimizer:
    """A learned optimizer whose MLP is drawn at random, its weights multiplied by `theta_scale`."""
    rng = np.random.default_rng(seed)
    optimizer = _learned(4)
    theta = jax.tree.map(lambda x: _normal(rng, x.shape, theta_scale * x.shape[0] ** -0.5), optimizer.head)
    return eqx.tree_at(lambda o: o.head, optimizer, theta)


def _normal(rng, shape, std: float = 1.0) -> Array:
    return jnp.asarray(std * rng.normal(size=shape), jnp.float32)


@functools.cache
def images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(512, 8, 8)).astype(np.float32)
    return image_dataset({"train": (images, rng.integers(0, CLASSES, 512))}, num_classes=CLASSES, name="noise")


@functools.cache
def _vectors():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(512, 16)).astype(np.float32)
    return image_dataset({"train": (vectors, rng.integers(0, CLASSES, 512))}, num_classes=CLASSES, name="noise")


@functools.cache
def _tokens():
    rng = np.random.default_rng(0)
    return TokenDataset({"train": jnp.asarray(rng.integers(1, VOCAB, (512, LENGTH)), jnp.int32)}, VOCAB)


@functools.cache
def task(name: str, width: int, parametrization, base_width: int | None, **sizes) -> tasks.AbstractTask:
    """A task of the zoo on data that is noise, so that no layer has anything to do with another."""
    if isinstance(parametrization, MuP) and parametrization.update_rule == "sgd":
        # The rule concerns the update scales alone. With those as arrays, what was compiled for Adam serves SGD.
        by_adam = task(name, width, dataclasses.replace(parametrization, update_rule="adam"), base_width, **sizes)
        scales = _built(name, width, parametrization, base_width, **sizes).update_scales
        return _with_scales(by_adam, scales)
    built = _built(name, width, parametrization, base_width, **sizes)
    return _with_scales(built, built.update_scales)


def _with_scales(built, scales):
    return eqx.tree_at(lambda t: t.optimizee.update_scales, built, jax.tree.map(jnp.float32, scales))


def _built(name: str, width: int, parametrization, base_width: int | None, **sizes) -> tasks.AbstractTask:
    common = dict(width=width, parametrization=parametrization, base_width=base_width, batch_size=32)
    if name == "mlp":
        return tasks.mlp_classification(_vectors(), **(dict(depth=3) | sizes), **common)
    if name == "cnn":
        return tasks.cnn_classification(images(), **common)
    if name in ("resnet", "resnet, batch norm"):
        norm = BatchNorm if name.endswith("batch norm") else GroupNorm
        return tasks.resnet_classification(images(), blocks=(1, 1), norm=norm, **common)
    if name == "vit":
        return tasks.vit_classification(images(), patch_size=4, depth=2, heads=2, **common)
    return tasks.language_modeling(_tokens(), depth=2, heads=2, positions=True, **common)


def coordinate_check(
    name: str,
    parametrization,
    optimizer: AbstractOptimizer,
    *,
    widths,
    seed: int,
    num_steps: int,
    num_seeds: int,
    **sizes,
) -> tasks.CoordinateCheck:
    """The library's coordinate check, at the base width `widths[0]`."""
    # Bound methods are pytrees, so that their optimizer's arrays are arguments of what is compiled.
    transformation = optax.GradientTransformation(optimizer.init, optimizer.update)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
        return tasks.coordinate_check(
            lambda width: task(name, width, parametrization, widths[0], **sizes),
            transformation,
            widths=widths,
            num_steps=num_steps,
            num_seeds=num_seeds,
            key=jax.random.key(seed),
        )


class Separable(eqx.Module):
    """A convolution, a depthwise one and a pointwise one, for one `[height, width]` image."""

    first: Conv
    depthwise: Conv
    pointwise: Conv
    readout: Linear

    def __init__(self, width: int, parametrization, base_width: int | None, key):
        units = Axis.growing(width, base_width)
        k = jax.random.split(key, 4)
        common = dict(parametrization=parametrization)
        self.first = Conv(1, units, kernel_size=3, stride=2, key=k[0], **common)
        self.depthwise = Conv(units, units, kernel_size=3, depthwise=True, key=k[1], **common)
        self.pointwise = Conv(units, units, kernel_size=1, key=k[2], **common)
        self.readout = Linear(units, CLASSES, key=k[3], **common)

    def __call__(self, x):
        x = jax.nn.relu(self.first(x[..., None]))
        x = jax.nn.relu(self.pointwise(jax.nn.relu(self.depthwise(x))))
        return self.readout(jnp.mean(x, (0, 1)))


def shape_of_model(name: str, width: int, parametrization, base_width: int | None) -> Any:
    """A model with shapes in place of arrays: nothing is drawn."""

    def build(key):
        common = dict(width=width, parametrization=parametrization, base_width=base_width, key=key)
        if name == "mlp":
            return MLP(16, CLASSES, depth=2, **common)
        if name == "cnn":
            return CNN(1, CLASSES, **common)
        if name == "resnet":
            return ResNet(1, CLASSES, blocks=(1, 1), **common)
        if name == "vit":
            return ViT((8, 8), CLASSES, patch_size=4, depth=1, heads=2, **common)
        if name == "lm":
            return TransformerLM(VOCAB, depth=1, heads=2, max_length=LENGTH, **common)
        return Separable(**common)

    return eqx.filter_eval_shape(build, KEY)


def inputs_for(name: str, rng, batch_size: int = 16):
    """A batch of inputs, and the classes to predict for each (or for each token)."""
    if name == "lm":
        tokens = rng.integers(0, VOCAB, (batch_size, LENGTH + 1))
        return jnp.asarray(tokens[:, :-1], jnp.int32), jnp.asarray(tokens[:, 1:], jnp.int32)
    shape = (16,) if name == "mlp" else (8, 8)
    classes = rng.integers(0, CLASSES, batch_size)
    return _normal(rng, (batch_size, *shape)), jnp.asarray(classes, jnp.int32)


def trajectory(
    model, params, scales, optimizer: AbstractOptimizer, inputs, classes, *, num_steps: int = 3
) -> np.ndarray:
    """The function values before each step and after the last: `[steps + 1, batch, ..., classes]`.

    - `model`: gives everything but the parameters. Its numbers, the multipliers, are made arrays.
    - `params`, `scales`: parameters, and a factor on the update of each.
    """
    rest = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    rest = jax.tree.map(lambda x: None if isinstance(x, jax.ShapeDtypeStruct) else x, rest)
    rest, scales = (jax.tree.map(lambda x: jnp.float32(x) if isinstance(x, float) else x, t) for t in (rest, scales))
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(_trajectory(params, rest, scales, optimizer, inputs, classes, num_steps))


@eqx.filter_jit
def _trajectory(params, rest, scales, optimizer, inputs, classes, num_steps):
    def outputs(params):
        return jax.vmap(eqx.combine(params, rest), axis_name="batch")(inputs)

    def loss(params):
        logits = outputs(params)
        one_hot = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy(logits, one_hot)), logits

    def step(carry, _):
        params, state = carry
        grads, logits = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, s, u: p + s * u, params, scales, updates)
        return (params, state), logits

    (params, _), found = jax.lax.scan(step, (params, optimizer.init(params)), None, num_steps)
    return jnp.concatenate([found, outputs(params)[None]])
