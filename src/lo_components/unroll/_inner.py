import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._types import Params
from ..aggregators import AbstractAggregator
from ..optimizers import SGD, AbstractOptimizer, Scaled, StepContext
from ..tasks import AbstractTask
from ._horizons import whole

LearnerT = TypeVar("LearnerT")


class AbstractInnerStep(eqx.Module, Generic[LearnerT]):
    """What one step of inner training does with a learner: an optimizer, or an aggregator."""

    @abc.abstractmethod
    def init(self, learner: LearnerT, params: Params) -> PyTree:
        """The learner's state before the first step."""

    @abc.abstractmethod
    def step(
        self,
        learner: LearnerT,
        task: AbstractTask,
        params: Params,
        learner_state: PyTree,
        num_steps: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Params, PyTree]:
        """The loss before the step, the parameters after it, and the learner's next state."""


class GradientStep(AbstractInnerStep[AbstractOptimizer]):
    """Draw a batch, take the gradient at the current parameters, and apply the learner's update to them.

    The update is multiplied by the task's update scales, where it has any.
    """

    def init(self, learner: AbstractOptimizer, params: Params) -> PyTree:
        return learner.init(params)

    def step(
        self,
        learner: AbstractOptimizer,
        task: AbstractTask,
        params: Params,
        learner_state: PyTree,
        num_steps: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Params, PyTree]:
        loss, grads = _loss_and_grads(task, params, key=key)
        optimizer = learner if task.update_scales is None else Scaled(learner, task.update_scales)
        context = StepContext(loss=loss, num_steps=num_steps)
        updates, learner_state = optimizer.update(grads, learner_state, params, context=context)
        return loss, optax.apply_updates(params, updates), learner_state


class LocalRound(AbstractInnerStep[AbstractAggregator]):
    r"""One round: $K$ workers take $H$ local steps each from shared parameters, then their deltas are aggregated.

    Every local step has its own batch, `task.batch(key=..., worker=k)`, and its own key; the local optimizer starts
    anew in each round. The loss is the mean over workers of the loss at the shared parameters, before any local step.
    The task's update scales, where it has any, multiply the aggregator's update, so that a mean is no longer one; for
    scaled local steps wrap the local optimizer in [`lo_components.optimizers.Scaled`][].

    All workers run on one device, as one `vmap`. The number of local steps is an array, so another one compiles nothing
    anew; the loop that this takes can be differentiated forwards, but not backwards.

    **Arguments:**

    - `num_workers`: $K$.
    - `local_steps`: $H$.
    - `local_optimizer`: of the local steps; its arrays are constants.

    Raises `ValueError` for fewer than one worker or step.

    ??? cite "Source"
        *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    num_workers: int = eqx.field(static=True)
    local_steps: Int[Array, ""] = eqx.field(converter=whole)
    local_optimizer: AbstractOptimizer = SGD(0.5)

    def __check_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {self.num_workers}.")
        if _tree.known(self.local_steps) and self.local_steps < 1:
            raise ValueError(f"`local_steps` must be at least 1, got {self.local_steps}.")

    def init(self, learner: AbstractAggregator, params: Params) -> PyTree:
        return learner.init(params)

    def step(
        self,
        learner: AbstractAggregator,
        task: AbstractTask,
        params: Params,
        learner_state: PyTree,
        num_steps: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Params, PyTree]:
        keys = jax.random.split(key, self.num_workers)
        workers = jnp.arange(self.num_workers, dtype=jnp.int32)
        losses, deltas = jax.vmap(lambda worker, key: self._local(task, params, worker, key))(workers, keys)
        loss = jnp.mean(losses)
        context = StepContext(loss=loss, num_steps=num_steps)
        update, learner_state = learner.aggregate(deltas, learner_state, params, context=context)
        if task.update_scales is not None:
            update = jax.tree.map(_tree.scaled, task.update_scales, update)
        return loss, optax.apply_updates(params, update), learner_state

    def _local(
        self, task: AbstractTask, start: Params, worker: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], PyTree[Float[Array, "..."]]]:
        """A worker's loss before its first step, and its delta."""

        def step(i, carry):
            first_loss, params, state = carry
            loss, grads = _loss_and_grads(task, params, worker=worker, key=jax.random.fold_in(key, i))
            context = StepContext(loss=loss, num_steps=self.local_steps)
            updates, state = self.local_optimizer.update(grads, state, params, context=context)
            first_loss = jnp.where(i == 0, loss.astype(jnp.float32), first_loss)
            return first_loss, optax.apply_updates(params, updates), state

        carry = (jnp.zeros((), jnp.float32), start, self.local_optimizer.init(start))
        loss, end, _ = jax.lax.fori_loop(0, self.local_steps, step, carry)
        return loss, jax.tree.map(lambda new, old: new.astype(jnp.float32) - old.astype(jnp.float32), end, start)


def _loss_and_grads(
    task: AbstractTask, params: Params, *, worker: Int[Array, ""] | None = None, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """Of a batch drawn for this step."""
    batch_key, loss_key = jax.random.split(key)
    batch = task.batch(key=batch_key, worker=worker)
    return jax.value_and_grad(task.loss)(params, batch, key=loss_key)
