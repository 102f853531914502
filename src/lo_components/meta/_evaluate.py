import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._tree import concrete, path_name
from .._types import typechecked
from ..aggregators import AbstractAggregator, AggregatorState
from ..data import AbstractBatchIterator
from ..optimizers import AbstractOptimizer, as_optimizer
from ..tasks import AbstractMeasuredTask, AbstractTask, streamed_tasks
from ..unroll import AbstractInnerStep, GradientStep
from ._arguments import checked
from ._stream import Windows

Trainer = AbstractOptimizer | AbstractAggregator | optax.GradientTransformation | optax.MultiSteps


class Evaluation(eqx.Module):
    """Training curves of one learner on one task.

    **Arguments:**

    - `losses`: the loss before each step or round, one row per seed; non-finite values are left as they are.
    - `finite`: whether every loss of a seed was finite.
    - `used`: the fraction of workers that each round used; `None` for optimizers.
    - `metrics`: by split and name, for instance `metrics["test"]["accuracy"]`, measured after the steps in
        `metric_steps`.
    - `metrics_every`: the number of steps between two measurements; `None`: only one, after the last step.

    In the result of [`lo_components.meta.sweep`][], all arrays have a leading axis of configurations.
    """

    losses: Float[Array, "seeds steps"]
    finite: Bool[Array, " seeds"]
    used: Float[Array, "seeds steps"] | None = None
    metrics: dict[str, dict[str, Float[Array, "seeds points"]]] = eqx.field(default_factory=dict)
    metrics_every: int | None = eqx.field(default=None, static=True)

    @property
    def metric_steps(self) -> Int[np.ndarray, " points"]:
        """The numbers of steps after which the metrics were measured."""
        return _metric_steps(self.losses.shape[-1], self.metrics_every)

    def final(self, last: int = 20) -> Float[Array, "*configurations seeds"]:
        """Each seed's mean loss over the last `last` steps.

        Raises `ValueError` if `last` is below 1.
        """
        if last < 1:
            raise ValueError(f"`last` must be at least 1, got {last}.")
        return jnp.mean(self.losses[..., -last:], axis=-1)

    def steps_to(self, loss: float, last: int = 20) -> Float[Array, "*configurations seeds"]:
        """The number of steps, or rounds, after which each seed's mean of the last `last` losses is at most `loss`.

        [`lo_components.meta.median_interval`][] turns these numbers into a median with a confidence interval.

        **Returns:** one number per seed; infinity for a seed whose mean never reaches `loss`.

        Raises `ValueError` if `last` is below 1.
        """
        if last < 1:
            raise ValueError(f"`last` must be at least 1, got {last}.")
        if last > self.losses.shape[-1]:
            return jnp.full(self.losses.shape[:-1], jnp.inf, jnp.float32)
        ones = (1,) * (self.losses.ndim - 1)
        means = jax.lax.reduce_window(self.losses, 0.0, jax.lax.add, (*ones, last), (1, *ones), "valid") / last
        reached = means <= loss
        steps = jnp.argmax(reached, axis=-1).astype(jnp.float32) + last
        return jnp.where(jnp.any(reached, axis=-1), steps, jnp.inf)


def _metric_steps(num_steps: int, every: int | None) -> Int[np.ndarray, " points"]:
    """The multiples of `every` below `num_steps` (none if `every` is `None`), and `num_steps`."""
    return np.append(np.arange(num_steps if every is None else every, num_steps, every), num_steps)


@checked
@typechecked
def evaluate(
    learner: Trainer,
    task: AbstractTask,
    *,
    num_steps: int,
    inner_step: AbstractInnerStep = GradientStep(),
    num_seeds: int = 3,
    seeds_at_once: int | None = None,
    splits: tuple[str, ...] | list[str] = (),
    metrics_every: int | None = None,
    stream: AbstractBatchIterator | None = None,
    key: PRNGKeyArray,
) -> Evaluation:
    """Meta-test: train a task from scratch with a learner, several seeds at once, in one compiled call.

    A second call compiles nothing if the sizes, the constants of the learner and those of the task are equal; arrays,
    such as those of a data set, may have other values. Functions are equal only if they are the same object, so each
    `optax.adam(...)` compiles again, and `OptaxOptimizer(optax.adam, 1e-3)` does not. [`lo_components.meta.sweep`][]
    compiles once for many hyperparameters.

    The random numbers of a seed depend only on `key` and the seed's index. So learners that are evaluated with the same
    `key` start from the same initial parameters, and they see the same batches if their inner steps are of the same
    kind. Measuring metrics does not change the losses.

    With a `stream`, training batches come from it, in its order and the same for all seeds: step `t` sees batch `t`,
    and a round has a window to itself, from which each worker chooses its batches. One compiled call trains for a
    window, while the next one is read, so windows of another size give the same losses of an optimizer.

    **Arguments:**

    - `learner`: any optimizer or optax transformation; or any aggregator, if `inner_step` is a
        [`lo_components.unroll.LocalRound`][].
    - `task`: the task to train; its update scales are applied to the learner's updates.
    - `num_steps`: inner steps, or rounds.
    - `inner_step`: one step of inner training.
    - `num_seeds`: independent runs.
    - `seeds_at_once`: how many seeds to run in parallel; `None`: all of them. Fewer need less memory.
    - `splits`: splits on which to measure the task's metrics during training, for instance
        `("inner_valid", "test")`.
    - `metrics_every`: the number of steps between two measurements. There is always one after the last step; with
        `None` it is the only one.
    - `stream`: batches, for instance from [`lo_components.data.pipeline`][]; `task` is then a
        [`lo_components.tasks.Streamed`][]. Whole windows are read from its present position, which is restored at the
        end, so that the next learner sees the same batches.
    - `key`: for initial parameters and batches.

    **Returns:** losses and metrics of every seed.

    Raises `ValueError` if a size is below 1, if `metrics_every` is given without `splits`, for an unknown split, or if
    the stream ends or is not for this task; `TypeError` if the task has no metrics, if `inner_step` does not take this
    kind of learner, or if there is a stream inside [`lo_components.meta.sweep`][]. Errors of the stream propagate.

    **Example:**

    ```pycon
    >>> task, adam = loc.tasks.Quadratic(start=jnp.ones(4)), loc.OptaxOptimizer(optax.adam, 0.1)
    >>> curves = loc.meta.evaluate(adam, task, num_steps=30, num_seeds=2, key=jax.random.key(0))
    >>> curves.losses.shape
    (2, 30)
    ```
    """
    seeds_at_once = num_seeds if seeds_at_once is None else seeds_at_once
    sizes = dict(num_steps=num_steps, num_seeds=num_seeds, seeds_at_once=seeds_at_once, metrics_every=metrics_every)
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if metrics_every is not None and not splits:
        raise ValueError('`metrics_every` needs `splits`, for instance `splits=("test",)`.')
    if splits and not isinstance(task, AbstractMeasuredTask):
        raise TypeError(
            f"`splits` needs a task with metrics, but {type(task).__name__} is not an "
            "`lo_components.tasks.AbstractMeasuredTask`."
        )
    run = _evaluate if stream is None else functools.partial(_evaluate_stream, stream)
    losses, used, metrics = run(
        as_learner(learner), task, num_steps, inner_step, num_seeds, seeds_at_once, tuple(splits), metrics_every, key
    )
    return Evaluation(losses, jnp.all(jnp.isfinite(losses), axis=1), used, metrics, metrics_every)


def as_learner(learner: Trainer) -> AbstractOptimizer | AbstractAggregator:
    """The learner itself, or an optimizer that wraps it if it is an optax transformation."""
    return learner if isinstance(learner, AbstractAggregator) else as_optimizer(learner, "learner")


@eqx.filter_jit
def _evaluate(learner, task, num_steps, inner_step, num_seeds, seeds_at_once, splits, metrics_every, key):
    steps = _metric_steps(num_steps, metrics_every)
    measured_after = jnp.zeros(num_steps, bool).at[steps - 1].set(True)

    def run(index):
        seed_key = jax.random.fold_in(key, index)
        observe = _observing(task, splits, lambda t: measured_after[t], key=seed_key)
        return observed_training(learner, task, num_steps, inner_step, observe, key=seed_key)

    losses, used, metrics = jax.lax.map(run, jnp.arange(num_seeds), batch_size=seeds_at_once)
    return losses, used, jax.tree.map(lambda x: x[:, steps - 1], metrics)


def _evaluate_stream(
    stream, learner, task, num_steps, inner_step, num_seeds, seeds_at_once, splits, metrics_every, key
):
    """`_evaluate` with batches from a stream: one compiled call per window, which carries the training of all seeds."""
    if not concrete(*jax.tree.leaves((learner, task, inner_step, key))):
        raise TypeError(
            "`stream` is read between compiled calls, so it cannot be used inside `sweep`, `jit` or `vmap`; call "
            "`evaluate` once per configuration."
        )
    steps = _metric_steps(num_steps, metrics_every)
    with Windows(stream, task) as source:
        size = 1 if isinstance(learner, AbstractAggregator) else source.num_batches
        measured_after = np.isin(np.arange(num_steps + size), steps - 1)
        trained, parts, total = _start_all(learner, task, inner_step, num_seeds, key), [], jnp.int32(num_steps)
        for first in range(0, num_steps, size):
            ts = np.arange(first, first + size)
            window = source.next(parts[-1][0] if parts else ())
            trained, part = _continue_all(
                learner, window, total, inner_step, seeds_at_once, splits, key, trained, ts, measured_after[ts]
            )
            parts.append(part)
        losses, used, metrics = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :num_steps], *parts)
    return jax.tree.map(jnp.asarray, (losses, used, jax.tree.map(lambda x: x[:, steps - 1], metrics)))


@eqx.filter_jit
def _start_all(learner, task, inner_step, num_seeds, key):
    def start(index):
        return _start(learner, task, inner_step, key=jax.random.fold_in(key, index))[0]

    # The next state is not weakly typed, so the second window would be compiled again if this one were.
    strong = lambda x: jax.lax.convert_element_type(x, x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x  # noqa: E731
    return jax.tree.map(strong, jax.lax.map(start, jnp.arange(num_seeds)))


@eqx.filter_jit
def _continue_all(learner, task, total, inner_step, seeds_at_once, splits, key, trained, ts, measured):
    """Continue the training of every seed for the steps `ts`, each of which has an equal part of the window."""
    window = streamed_tasks(task)[0].batches
    parts = jax.tree.map(lambda x: x.reshape(len(ts), -1, *x.shape[1:]), window)

    def run(carry_and_index):
        carry, index = carry_and_index
        seed_key = jax.random.fold_in(key, index)
        steps_key = jax.random.split(seed_key)[1]
        observe = _observing(task, splits, lambda t: measured[t - ts[0]], key=seed_key)

        def step(carry, xs):
            t, part = xs
            of_step = eqx.tree_at(lambda x: [s.batches for s in streamed_tasks(x)], task, replace_fn=lambda _: part)
            step_key = jax.random.fold_in(steps_key, t)
            return _observed_step(learner, of_step, total, inner_step, observe, carry, t, key=step_key)

        return jax.lax.scan(step, carry, (ts, parts))

    indices = jnp.arange(jax.tree.leaves(trained)[0].shape[0])
    return jax.lax.map(run, (trained, indices), batch_size=seeds_at_once)


def _observing(task, splits, measured_after: Callable, *, key: PRNGKeyArray) -> Callable:
    """A function that returns the loss, the fraction of workers, and the metrics after the steps to be measured."""

    def measured(params):
        # The key is the same at every measurement, so batch normalization uses the same reference batches.
        metrics_key = other_key(key)
        return {split: task.metrics(params, split=split, key=metrics_key) for split in splits}

    def observed(t, loss, before, after, state):
        skipped = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measured, after))
        metrics = jax.lax.cond(measured_after(t), measured, lambda _: skipped, after)
        return loss, state.used if isinstance(state, AggregatorState) else None, metrics

    return observed


def observed_training(
    learner: AbstractOptimizer | AbstractAggregator,
    task: AbstractTask,
    num_steps: int,
    inner_step: AbstractInnerStep,
    observe: Callable,
    *,
    key: PRNGKeyArray,
) -> PyTree:
    """Train from scratch, and stack `observe(t, loss, params before, params after, state)` over all steps `t`."""
    carry, steps_key = _start(learner, task, inner_step, key=key)
    total = jnp.asarray(num_steps, jnp.int32)

    def step(carry, xs):
        return _observed_step(learner, task, total, inner_step, observe, carry, xs[0], key=xs[1])

    return jax.lax.scan(step, carry, (jnp.arange(num_steps), jax.random.split(steps_key, num_steps)))[1]


def _start(learner, task, inner_step, *, key: PRNGKeyArray) -> tuple[tuple, PRNGKeyArray]:
    """Initial parameters with the learner's state, and the key of the steps."""
    init_key, steps_key = jax.random.split(key)
    params = task.init(key=init_key)
    return (params, inner_step.init(learner, params)), steps_key


def _observed_step(learner, task, total, inner_step, observe, carry, t, *, key):
    before, state = carry
    loss, after, state = inner_step.step(learner, task, before, state, total, key=key)
    return (after, state), observe(t, loss, before, after, state)


def other_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key that differs from all keys that `observed_training` derives from `key`."""
    return jax.random.fold_in(key, 2)


@checked
@typechecked
def step_sizes(
    learner: Trainer, task: AbstractTask, *, num_steps: int, key: PRNGKeyArray
) -> dict[str, Float[Array, " steps"]]:
    r"""The root mean square of each array's update in each step, $\lVert p_{t+1} - p_t \rVert / \sqrt n$.

    Here $n$ is the number of elements of the array $p$. The result shows which layers a learned optimizer trains and
    how its step sizes decay.

    **Arguments:**

    - `learner`: any optimizer or optax transformation.
    - `task`, `key`: as in [`lo_components.meta.evaluate`][].
    - `num_steps`: inner steps of the single run.

    **Returns:** step sizes by path of the array, for instance `layers/0/weight`.

    Raises `ValueError` if `num_steps` is below 1, and `TypeError` for an aggregator.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    return _step_sizes(as_learner(learner), task, num_steps, key)


@eqx.filter_jit
def _step_sizes(learner, task, num_steps, key):
    def sizes(t, loss, before, after, state):
        moves = jax.tree.map(lambda a, b: (a - b).astype(jnp.float32), after, before)
        return {path_name(p): jnp.sqrt(jnp.mean(jnp.square(x))) for p, x in jax.tree_util.tree_leaves_with_path(moves)}

    return observed_training(learner, task, num_steps, GradientStep(), sizes, key=key)
