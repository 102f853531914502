"""Task families that are made by augmenting a task."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._types import Params
from ._base import AbstractTask
from ._family import AbstractTaskFamily
from ._wrapper import AbstractTaskWrapper


class AbstractAugmentation(AbstractTaskFamily):
    """A task family made from a task or from another family, so augmentations can be nested."""

    base: AbstractVar[AbstractTask | AbstractTaskFamily]

    @abc.abstractmethod
    def sample_change(self, task: AbstractTask, *, key: PRNGKeyArray) -> PyTree:
        """A random change of one task.

        **Arguments:**

        - `task`: the task, or a sample of the family `base`.
        - `key`: for the change.
        """

    @abc.abstractmethod
    def augmented(self, task: AbstractTask, sampled: PyTree) -> AbstractTask:
        """The task with a change.

        **Arguments:**

        - `task`: the task before the change.
        - `sampled`: from `sample_change`.
        """

    def sample(self, *, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """The sample of `base` (`None` if it is a task), and the change."""
        base_key, key = jax.random.split(key)
        sampled = self.base.sample(key=base_key) if isinstance(self.base, AbstractTaskFamily) else None
        return sampled, self.sample_change(self._base_task(sampled), key=key)

    def task(self, sampled: tuple[PyTree, PyTree]) -> AbstractTask:
        """The task of one sample: the base task with the change.

        **Arguments:**

        - `sampled`: from `sample`.
        """
        return self.augmented(self._base_task(sampled[0]), sampled[1])

    def _base_task(self, sampled: PyTree) -> AbstractTask:
        return self.base.task(sampled) if isinstance(self.base, AbstractTaskFamily) else self.base


class Reparametrized(AbstractAugmentation):
    r"""The same model with rescaled parameters: $p'_i = p_i / c_i$ for each array, with $c_i$ log-uniform in
    $[1/m, m]$.

    The model starts as the same function, but its gradients are $c_i$ times larger, and steps must be $c_i$ times
    smaller, so learners have to work at various scales of parameters and gradients.

    **Arguments:**

    - `base`: the task, or a family of tasks.
    - `max_scale`: $m$, at least 1.

    Raises `ValueError` if `max_scale` is below 1 or not finite.

    ??? cite "Source"
        Metz et al., *VeLO* (arXiv 2211.09760), task augmentation by reparametrized weights.
    """

    base: AbstractTask | AbstractTaskFamily
    max_scale: float = eqx.field(default=10.0, static=True)

    def __check_init__(self):
        if not 1.0 <= self.max_scale < math.inf:
            raise ValueError(f"`max_scale` must be at least 1, got {self.max_scale}.")

    def sample_change(self, task: AbstractTask, *, key: PRNGKeyArray) -> PyTree[Float[Array, ""]]:
        leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda: task.init(key=jax.random.key(0))))
        bound = math.log(self.max_scale)
        return treedef.unflatten(list(jnp.exp(jax.random.uniform(key, (len(leaves),), jnp.float32, -bound, bound))))

    def augmented(self, task: AbstractTask, sampled: PyTree[Float[Array, ""]]) -> AbstractTask:
        return _ReparametrizedTask(task, sampled)


class ReducedBatch(AbstractAugmentation):
    r"""The same task with smaller batches of $\lceil B u \rceil$ examples, with $u$ log-uniform in $[f, 1]$.

    Gradients become noisier. Batches keep their shape: their first examples are repeated to fill it. Splits other than
    `"train"` do not change.

    **Arguments:**

    - `base`: the task, or a family of tasks; batches are trees of arrays with one leading batch axis.
    - `min_fraction`: $f$, above 0 and at most 1.

    Raises `ValueError` if `min_fraction` is out of range.

    ??? cite "Source"
        Metz et al., *VeLO* (arXiv 2211.09760), task augmentation by reduced batch sizes.
    """

    base: AbstractTask | AbstractTaskFamily
    min_fraction: float = eqx.field(default=0.05, static=True)

    def __check_init__(self):
        if not 0.0 < self.min_fraction <= 1.0:
            raise ValueError(f"`min_fraction` must be above 0 and at most 1, got {self.min_fraction}.")

    def sample_change(self, task: AbstractTask, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return jnp.exp(jax.random.uniform(key, (), jnp.float32, math.log(self.min_fraction), 0.0))

    def augmented(self, task: AbstractTask, sampled: Float[Array, ""]) -> AbstractTask:
        return _ReducedBatchTask(task, sampled)


class NoisyGradient(AbstractAugmentation):
    r"""The same task with Gaussian noise added to its gradients, of a standard deviation that is log-uniform in
    $[\sigma_{min}, \sigma_{max}]$. Losses do not change.

    **Arguments:**

    - `base`: the task, or a family of tasks.
    - `min_std`, `max_std`: the bounds, with $0 < \sigma_{min} \le \sigma_{max}$.

    Raises `ValueError` if the bounds are not positive, finite and in this order.

    ??? cite "Source"
        Metz et al., *VeLO* (arXiv 2211.09760), task augmentation by gradient noise.
    """

    base: AbstractTask | AbstractTaskFamily
    min_std: float = eqx.field(default=1e-3, static=True)
    max_std: float = eqx.field(default=1e-1, static=True)

    def __check_init__(self):
        if not 0.0 < self.min_std <= self.max_std < math.inf:
            raise ValueError(
                f"`min_std` and `max_std` must be positive and in order, got {self.min_std, self.max_std}."
            )

    def sample_change(self, task: AbstractTask, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return jnp.exp(jax.random.uniform(key, (), jnp.float32, math.log(self.min_std), math.log(self.max_std)))

    def augmented(self, task: AbstractTask, sampled: Float[Array, ""]) -> AbstractTask:
        return _NoisyGradientTask(task, sampled)


class _ReparametrizedTask(AbstractTaskWrapper):
    task: AbstractTask
    scales: PyTree[Float[Array, ""]]

    def init(self, *, key: PRNGKeyArray) -> Params:
        return jax.tree.map(lambda p, c: (p / c).astype(p.dtype), self.task.init(key=key), self.scales)

    def loss(self, params: Params, batch: Any, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return self.task.loss(jax.tree.map(lambda p, c: (p * c).astype(p.dtype), params, self.scales), batch, key=key)


class _ReducedBatchTask(AbstractTaskWrapper):
    task: AbstractTask
    fraction: Float[Array, ""]

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        batch = self.task.batch(key=key, split=split, worker=worker)
        if split != "train":
            return batch
        size = jax.tree.leaves(batch)[0].shape[0]
        index = jnp.arange(size) % jnp.ceil(size * self.fraction).astype(jnp.int32)
        return jax.tree.map(lambda x: x[index], batch)


class _NoisyGradientTask(AbstractTaskWrapper):
    task: AbstractTask
    std: Float[Array, ""]

    def loss(self, params: Params, batch: Any, *, key: PRNGKeyArray) -> Float[Array, ""]:
        noise_key, loss_key = jax.random.split(key)
        return self.task.loss(params, batch, key=loss_key) + self.std * _noise_gradient(params, key=noise_key)


def _noise_gradient(params: Params, *, key: PRNGKeyArray) -> Float[Array, ""]:
    """Zero, with standard normal noise as its gradient."""
    noise = _tree.normal_like(params, key=key)
    products = jax.tree.map(lambda p, e: jnp.sum((p - jax.lax.stop_gradient(p)) * e, dtype=jnp.float32), params, noise)
    return jax.tree.reduce(jnp.add, products, jnp.float32(0.0))
