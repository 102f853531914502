import abc
from typing import ClassVar, Generic, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, UInt32

from .. import _tree, aggregators
from .._types import Params
from ..aggregators import AbstractAggregator
from ..optimizers import AbstractOptimizer, OptaxOptimizer, Scaled, StepContext, as_optimizer
from ..parametrization import SP
from ..tasks import AbstractTask
from ._horizons import whole

LearnerT = TypeVar("LearnerT")
WorkerKeys = Key[Array, " workers"] | UInt32[Array, "workers _"]


class AbstractInnerStep(eqx.Module, Generic[LearnerT]):
    """One step of inner training with a learner, which is an optimizer or an aggregator.

    An inner step multiplies updates by the update scales that the task's parametrization gives for the learner's update
    rules. `reverse_mode` tells whether the step has a reverse-mode derivative.
    """

    reverse_mode: ClassVar[bool] = True

    @abc.abstractmethod
    def init(self, learner: LearnerT, params: Params) -> PyTree:
        """The learner's state before the first step.

        **Arguments:**

        - `learner`: an optimizer or an aggregator.
        - `params`: the initial parameters.
        """

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
        """Take one step.

        **Arguments:**

        - `learner`: the optimizer or aggregator.
        - `task`: gives batches, losses and the parametrization.
        - `params`: the parameters before the step.
        - `learner_state`: from `init` or the previous step.
        - `num_steps`: the length of training in steps.
        - `key`: for the step's batches.

        **Returns:** the loss before the step, the parameters after it, and the learner's next state.
        """


class GradientStep(AbstractInnerStep[AbstractOptimizer]):
    """Sample a batch, take the gradient at the current parameters, and apply the learner's update to them.

    The update is multiplied by the task's update scales for the learner's update rule. Its `init` raises `TypeError` if
    the learner is not an optimizer.
    """

    def init(self, learner: AbstractOptimizer, params: Params) -> PyTree:
        if not isinstance(learner, AbstractOptimizer):
            raise TypeError(
                f"`learner` must be an optimizer for `GradientStep`, got {type(learner).__name__}; aggregators take "
                "`inner_step=LocalRound(...)`."
            )
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
        optimizer = scaled_for(task, learner, params)
        context = StepContext(loss=loss, num_steps=num_steps)
        updates, learner_state = optimizer.update(grads, learner_state, params, context=context)
        return loss, optax.apply_updates(params, updates), learner_state


class LocalRound(AbstractInnerStep[AbstractAggregator]):
    r"""One round: $K$ workers take $H$ local steps each from shared parameters, then their deltas are aggregated.

    Each local step has its own batch, `task.batch(key=..., worker=k)`, and its own key; the local optimizer is
    re-initialized in each round. The loss is the mean over workers of the loss at the shared parameters, before any
    local step; workers that are absent or not finite do not count. The task's update scales are applied twice: around
    the local optimizer for its update rules, and around the aggregator for those of the aggregator. Aggregators that
    are linear in the deltas, such as a mean, are not scaled, since deltas already have the right size.

    All workers run on one device, in one `vmap`; [`lo_components.sharding.WorkerSharded`][] spreads them over several.
    The number of local steps is an array, so changing it does not recompile, but the loop over it has forward-mode
    derivatives only.

    **Arguments:**

    - `num_workers`: $K$.
    - `local_steps`: $H$.
    - `local_optimizer`: the optimizer of the local steps, an optimizer of this library or any optax transformation.
        Its arrays are not meta-learned.
    - `participation`: the probability that a worker takes part in a round, independently of the others.

    Raises `ValueError` for fewer than one worker or step, or a probability outside $(0, 1]$. Its `init` raises
    `TypeError` if the learner is not an aggregator.

    ??? cite "Source"
        *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    reverse_mode: ClassVar[bool] = False
    num_workers: int = eqx.field(static=True)
    local_steps: Int[Array, ""] = eqx.field(converter=whole)
    local_optimizer: AbstractOptimizer = eqx.field(
        default=OptaxOptimizer(optax.sgd, 0.5), converter=lambda x: as_optimizer(x, "local_optimizer")
    )
    participation: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {self.num_workers}.")
        if _tree.concrete(self.local_steps) and self.local_steps < 1:
            raise ValueError(f"`local_steps` must be at least 1, got {self.local_steps}.")
        if not 0 < self.participation <= 1:
            raise ValueError(f"`participation` must be above 0 and at most 1, got {self.participation}.")

    def init(self, learner: AbstractAggregator, params: Params) -> PyTree:
        if not isinstance(learner, AbstractAggregator):
            raise TypeError(f"`learner` must be an aggregator for `LocalRound`, got {type(learner).__name__}.")
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
        losses, deltas = self.local(task, params, *self.workers(key=key))
        return self.aggregated(learner, task, params, learner_state, losses, deltas, num_steps, key=key)

    def workers(self, *, key: PRNGKeyArray) -> tuple[Int[Array, " workers"], WorkerKeys]:
        """The index and the key of each worker, from the key of the round."""
        return jnp.arange(self.num_workers, dtype=jnp.int32), jax.random.split(key, self.num_workers)

    def presence_key(self, *, key: PRNGKeyArray) -> PRNGKeyArray:
        """The key for sampling which workers take part in a round."""
        # `split` gives worker `k` the key `fold_in(key, k)`, so this one is independent of all of them.
        return jax.random.fold_in(key, self.num_workers)

    def local(
        self, task: AbstractTask, params: Params, workers: Int[Array, " workers"], keys: WorkerKeys
    ) -> tuple[Float[Array, " workers"], PyTree[Float[Array, "workers ..."]]]:
        """The local steps of some workers.

        **Arguments:**

        - `task`: gives batches, losses and the parametrization.
        - `params`: the shared parameters.
        - `workers`, `keys`: the indices and keys of these workers, from `workers`.

        **Returns:** for each worker, the loss before its first step, and its delta.
        """
        return jax.vmap(lambda worker, key: self._one(task, params, worker, key))(workers, keys)

    def aggregated(
        self,
        learner: AbstractAggregator,
        task: AbstractTask,
        params: Params,
        learner_state: PyTree,
        losses: Float[Array, " workers"],
        deltas: PyTree[Float[Array, "workers ..."]],
        num_steps: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Params, PyTree]:
        """The result of `step`, from the losses and deltas of all workers.

        **Arguments:**

        - `learner`, `task`, `params`, `learner_state`, `num_steps`, `key`: as in `step`.
        - `losses`, `deltas`: from `local`.
        """
        present = None
        if self.participation < 1:
            present = jax.random.bernoulli(self.presence_key(key=key), self.participation, (self.num_workers,))
        loss = _mean_loss(losses, present)
        aggregator = scaled_for(task, learner, params)
        context = StepContext(loss=loss, num_steps=num_steps)
        update, learner_state = aggregator.aggregate(deltas, learner_state, params, present=present, context=context)
        return loss, optax.apply_updates(params, update), learner_state

    def _one(
        self, task: AbstractTask, start: Params, worker: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], PyTree[Float[Array, "..."]]]:
        """The loss of a worker before its first step, and its delta."""
        optimizer = scaled_for(task, self.local_optimizer, start)

        def step(i, carry):
            first_loss, params, state = carry
            loss, grads = _loss_and_grads(task, params, worker=worker, key=jax.random.fold_in(key, i))
            context = StepContext(loss=loss, num_steps=self.local_steps)
            updates, state = optimizer.update(grads, state, params, context=context)
            first_loss = jnp.where(i == 0, loss.astype(jnp.float32), first_loss)
            return first_loss, optax.apply_updates(params, updates), state

        carry = (jnp.zeros((), jnp.float32), start, optimizer.init(start))
        loss, end, _ = jax.lax.fori_loop(0, self.local_steps, step, carry)
        return loss, jax.tree.map(lambda new, old: new.astype(jnp.float32) - old.astype(jnp.float32), end, start)


@overload
def scaled_for(task: AbstractTask, learner: AbstractOptimizer, params: Params) -> AbstractOptimizer: ...


@overload
def scaled_for(task: AbstractTask, learner: AbstractAggregator, params: Params) -> AbstractAggregator: ...


def scaled_for(
    task: AbstractTask, learner: AbstractOptimizer | AbstractAggregator, params: Params
) -> AbstractOptimizer | AbstractAggregator:
    """The learner with its updates multiplied by the scales of a task's parametrization.

    **Arguments:**

    - `task`: gives the widths and the parametrization.
    - `learner`: an optimizer or an aggregator, whose update rules determine the scales.
    - `params`: the task's parameters; only their structure and shapes matter.

    **Example:**

    ```pycon
    >>> mup, digits = loc.parametrization.MuP(), loc.data.digits()
    >>> task = loc.tasks.mlp_classification(digits, width=128, depth=2, parametrization=mup)
    >>> learner = loc.unroll.scaled_for(task, loc.pretrained("mulo"), task.init(key=jax.random.key(0)))
    >>> learner.scales.layers[1].weight
    0.0078125
    ```
    """
    if task.widths is None or isinstance(task.parametrization, SP):
        return learner
    scales = task.parametrization.update_scales(task.widths, learner.update_rules(params))
    if isinstance(learner, AbstractAggregator):
        return aggregators.Scaled(learner, scales)
    return Scaled(learner, scales)


def _mean_loss(losses: Float[Array, " workers"], present: Bool[Array, " workers"] | None) -> Float[Array, ""]:
    """The mean over workers that are present and finite; if there are none, over all finite ones."""
    finite = jnp.isfinite(losses)
    some = finite if present is None else finite & present
    counted = jnp.where(jnp.any(some), some, finite)
    mean = jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.maximum(jnp.sum(counted, dtype=jnp.float32), 1.0)
    return jnp.where(jnp.any(counted), mean, jnp.nan)


def _loss_and_grads(
    task: AbstractTask, params: Params, *, worker: Int[Array, ""] | None = None, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """Loss and gradient on a batch sampled for this step."""
    batch_key, loss_key = jax.random.split(key)
    batch = task.batch(key=batch_key, worker=worker)
    return jax.value_and_grad(task.loss)(params, batch, key=loss_key)
