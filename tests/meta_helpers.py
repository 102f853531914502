"""Tiny tasks, learners and data sets for tests of meta-training."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from helpers import SGD

from lo_components.data import image_dataset
from lo_components.estimators import AbstractEstimator, Estimate
from lo_components.optimizers import AbstractOptimizer, StepContext
from lo_components.parametrization import SCALE_FREE, SP, AbstractParametrization, every_leaf
from lo_components.tasks import AbstractTask, Quadratic, mlp_classification
from lo_components.unroll import ConstantHorizon, TruncatedUnroll

START = np.array([1.0, -2.0, 0.5], np.float32)


class Drift(AbstractOptimizer):
    """Adds a learned constant at every step and counts steps. Losses on `Quadratic` are quadratic in the constant."""

    velocity: jax.Array

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return jnp.zeros((), jnp.int32)

    def update(self, grads, state, params, *, context=StepContext()):
        return self.velocity, state + 1


class Ignorant(AbstractOptimizer):
    """Has a meta-parameter that it does not use."""

    unused: jax.Array

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return ()

    def update(self, grads, state, params, *, context=StepContext()):
        return jax.tree.map(lambda g: -0.1 * g, grads), state


class Remembering(AbstractOptimizer):
    """Its meta-parameter is its initial state, which never changes."""

    memory: jax.Array

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return self.memory

    def update(self, grads, state, params, *, context=StepContext()):
        return jax.tree.map(lambda g: -0.1 * g, grads), state


class Fragile(AbstractOptimizer):
    """Adds a learned scalar, or NaN if the scalar exceeds `limit`."""

    velocity: jax.Array
    limit: float

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return ()

    def update(self, grads, state, params, *, context=StepContext()):
        step = jnp.where(self.velocity > self.limit, jnp.nan, self.velocity)
        return jax.tree.map(lambda g: jnp.broadcast_to(step, g.shape), grads), state


class Counting(AbstractOptimizer):
    """SGD that counts in a list how often `update` is traced."""

    learning_rate: Any
    traces: list = eqx.field(static=True)

    def update_rules(self, params):
        return every_leaf(params, SCALE_FREE)

    def init(self, params):
        return SGD(self.learning_rate).init(params)

    def update(self, grads, state, params, *, context=StepContext()):
        self.traces.append(1)
        return SGD(self.learning_rate).update(grads, state, params)


class HashableList(list):
    """A list that can be a static field."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


class Noisy(AbstractTask):
    """Random initial parameters and a random target in every batch, which show which runs get the same keys."""

    widths: Any = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = eqx.field(default=math.inf, static=True)

    def init(self, *, key):
        return jax.random.normal(key, (3,))

    def batch(self, *, key, split="train", worker=None):
        return jax.random.normal(key, (3,))

    def loss(self, params, batch, *, key):
        return 0.5 * jnp.sum(jnp.square(params - batch)) + jax.random.uniform(key)


class Given(AbstractEstimator):
    """Returns the same estimate for every learner, and counts the calls."""

    grad: Any
    finite: jax.Array
    unroll: Any = None

    def init(self, learner, *, key):
        return jnp.zeros((), jnp.int32)

    def estimate(self, learner, state, *, key):
        numbers = jnp.asarray(2.5), jnp.asarray(1.5), self.grad, self.finite, self.finite, jnp.asarray(20)
        return Estimate(*numbers, diagnostics={}), state + 1


def quadratic_unroll(*, steps, window, max_loss=math.inf):
    return TruncatedUnroll(Quadratic(jnp.asarray(START), max_loss=max_loss), ConstantHorizon(steps), window)


def toy_images(*, scale=1.0):
    """Two-pixel images of three classes, 24 for training and 6 for testing."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    centers = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    images = (scale * (centers[labels] + 0.3 * rng.standard_normal((30, 2)))).astype(np.float32)
    splits = {"train": (images[:24], labels[:24]), "test": (images[24:], labels[24:])}
    return image_dataset(splits, num_classes=3, name="toy")


def toy_task(**kwargs):
    return mlp_classification(toy_images(), **{"width": 4, "depth": 2, "batch_size": 8, **kwargs})


def assert_identical(actual, expected):
    """Assert equal structures, and leaves that are equal in shape, dtype and every bit of their values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if not isinstance(a, jax.Array | np.ndarray | np.generic | int | float | complex):
            assert a == b
            continue
        a, b = (x if isinstance(x, np.ndarray) else as_numpy(jnp.asarray(x)) for x in (a, b))
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def as_numpy(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
