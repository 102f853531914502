import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..optimizers import AbstractOptimizer, Scaled, StepContext
from ..tasks import AbstractTask

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
        batch_key, loss_key = jax.random.split(key)
        batch = task.batch(key=batch_key)
        loss, grads = jax.value_and_grad(task.loss)(params, batch, key=loss_key)
        optimizer = learner if task.update_scales is None else Scaled(learner, task.update_scales)
        context = StepContext(loss=loss, num_steps=num_steps)
        updates, learner_state = optimizer.update(grads, learner_state, params, context=context)
        return loss, optax.apply_updates(params, updates), learner_state
