"""Networks, tasks and optimizers of the property tests.

These tests spend most of their time on compilation. So tasks and optimizers are built once, and everything that a test
samples (seeds, learning rates, meta-parameters, multipliers, even the choice of Adam or SGD) is an array in them.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from lo_components import meta, recipes, tasks
from lo_components.data import TokenDataset, image_dataset
from lo_components.nn import CNN, MLP, BatchNorm, Conv, GroupNorm, Linear, ResNet, TransformerLM, ViT
from lo_components.optimizers import AbstractOptimizer, OptaxOptimizer, StepContext
from lo_components.parametrization import (
    ORTHOGONALIZED,
    PROPORTIONAL,
    SCALE_FREE,
    AbstractParametrization,
    Axis,
    every_leaf,
)
from lo_components.tasks import AbstractTaskWrapper

KEY = jax.random.key(0)
CLASSES, VOCAB, LENGTH = 4, 16, 8


class AdamOrSGD(AbstractOptimizer):
    """Adam if `adam` is true, otherwise plain SGD. `ScaledFor` overrides the update rule."""

    learning_rate: Float[Array, ""]
    adam: Bool[Array, ""]

    def _adam(self):
        # An epsilon far below any gradient, since under muP gradients fall as 1 / width.
        return OptaxOptimizer(optax.adam, self.learning_rate, eps=1e-15)

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return self._adam().init(params)

    def update(self, grads, state, params, *, context: StepContext = StepContext()):
        by_adam, state = self._adam().update(grads, state, params)
        by_sgd = jax.tree.map(lambda g: -self.learning_rate * g, grads)
        return jax.tree.map(lambda a, b: jnp.where(self.adam, a, b), by_adam, by_sgd), state


class Orthogonalized(AbstractOptimizer):
    """Five Newton-Schulz steps on each weight's gradient, as a matrix `[out, rest]`; vectors are normalized."""

    learning_rate: Float[Array, ""]

    def update_rules(self, params):
        return every_leaf(params, ORTHOGONALIZED)

    def init(self, params):
        return ()

    def update(self, grads, state, params, *, context: StepContext = StepContext()):
        return jax.tree.map(lambda g: -self.learning_rate * orthogonalized(g), grads), state


def orthogonalized(grad: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    x = grad.reshape(grad.shape[0], -1) / (jnp.linalg.norm(grad) + 1e-20)
    if grad.ndim == 1:
        return x.reshape(grad.shape)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        square = jnp.matmul(x, x.T, precision="highest")
        polynomial = -4.7750 * square + 2.0315 * jnp.matmul(square, square, precision="highest")
        x = 3.4445 * x + jnp.matmul(polynomial, x, precision="highest")
    return (x.T if tall else x).reshape(grad.shape)


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
    """A learned optimizer with a random MLP, whose weights are multiplied by `theta_scale`."""
    rng = np.random.default_rng(seed)
    optimizer = _learned(4)
    theta = jax.tree.map(lambda x: _normal(rng, x.shape, theta_scale * x.shape[0] ** -0.5), optimizer.pipeline.head)
    return eqx.tree_at(lambda o: o.pipeline.head, optimizer, theta)


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


class _Either(AbstractParametrization):
    """Scales for Adam or SGD as arrays, so that both use the same compiled program."""

    base: AbstractParametrization
    adam: Bool[Array, ""]

    def update_scale(self, width, rule):
        by_adam, by_sgd = (self.base.update_scale(width, rule) for rule in (SCALE_FREE, PROPORTIONAL))
        return jnp.where(self.adam, jnp.float32(by_adam), jnp.float32(by_sgd))

    def init_std(self, width):
        return self.base.init_std(width)

    def forward_multiplier(self, width):
        return self.base.forward_multiplier(width)

    def attention_scale(self, head):
        return self.base.attention_scale(head)

    @property
    def residual_multiplier(self):
        return self.base.residual_multiplier


class ScaledFor(AbstractTaskWrapper):
    """A task whose update scales are Adam's or SGD's."""

    task: tasks.AbstractTask
    adam: Bool[Array, ""]

    @property
    def parametrization(self):
        return _Either(self.task.parametrization, self.adam)


@functools.cache
def task(name: str, width: int, parametrization, base_width: int | None, **sizes) -> tasks.AbstractTask:
    """A task of the zoo with noise as data."""
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
    if name == "autoencoder":
        return tasks.image_autoencoding(images(), **sizes, **common)
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
) -> meta.CoordinateCheck:
    """The library's coordinate check, with base width `widths[0]`."""

    def make(width):
        built = task(name, width, parametrization, widths[0], **sizes)
        return ScaledFor(built, optimizer.adam) if isinstance(optimizer, AdamOrSGD) else built

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
        return meta.coordinate_check(
            optimizer,
            make,
            widths=widths,
            num_steps=num_steps,
            num_seeds=num_seeds,
            key=jax.random.key(seed),
        )


class Separable(eqx.Module):
    """A full, a depthwise and a pointwise convolution, for one `[height, width]` image."""

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
    """A model with shapes in place of arrays; nothing is sampled."""

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
    """A batch of inputs, and the class of each example (or token)."""
    if name == "lm":
        tokens = rng.integers(0, VOCAB, (batch_size, LENGTH + 1))
        return jnp.asarray(tokens[:, :-1], jnp.int32), jnp.asarray(tokens[:, 1:], jnp.int32)
    shape = (16,) if name == "mlp" else (8, 8)
    classes = rng.integers(0, CLASSES, batch_size)
    return _normal(rng, (batch_size, *shape)), jnp.asarray(classes, jnp.int32)


def trajectory(
    model, params, scales, optimizer: AbstractOptimizer, inputs, classes, *, num_steps: int = 3
) -> np.ndarray:
    """The outputs before each step and after the last one, `[steps + 1, batch, ..., classes]`.

    - `model`: everything except the parameters. Its floats, the multipliers, become arrays.
    - `params`, `scales`: the parameters, and a factor on the update of each array.
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
