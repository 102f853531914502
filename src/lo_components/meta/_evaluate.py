from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._tree import path_name
from .._types import typechecked
from ..aggregators import AbstractAggregator, AggregatorState
from ..optimizers import AbstractOptimizer
from ..tasks import AbstractTask
from ..unroll import AbstractInnerStep, GradientStep


class Evaluation(eqx.Module):
    """Training curves of one learner on one task.

    **Arguments:**

    - `losses`: the loss before each step or round, one row per seed; non-finite values are left as they are.
    - `finite`: whether every loss of a seed was finite.
    - `used`: of aggregators, the share of workers that each round used.
    """

    losses: Float[Array, "seeds steps"]
    finite: Bool[Array, " seeds"]
    used: Float[Array, "seeds steps"] | None = None

    def final(self, last: int = 20) -> Float[Array, "*vmapped seeds"]:
        """Each seed's mean loss over the last `last` steps."""
        if last < 1:
            raise ValueError(f"`last` must be at least 1, got {last}.")
        return jnp.mean(self.losses[..., -last:], axis=-1)

    def steps_to(self, loss: float, last: int = 20) -> Float[Array, "*vmapped seeds"]:
        """The number of steps, or rounds, after which each seed's mean of the last `last` losses is at most `loss`.

        Infinite where it never is.
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


@typechecked
def evaluate(
    task: AbstractTask,
    learner: AbstractOptimizer | AbstractAggregator,
    num_steps: int,
    *,
    inner_step: AbstractInnerStep = GradientStep(),
    num_seeds: int = 3,
    seeds_at_once: int | None = None,
    key: PRNGKeyArray,
) -> Evaluation:
    """Meta-test: train a task from scratch with a learner, several seeds at once, in one compiled call.

    A second call with the same task object and sizes, and a learner of equal constants, compiles nothing. Seeds depend
    on `key` and their index alone, so learners compared under one key see the same initial parameters, and the same
    batches where their inner steps are alike.

    **Arguments:**

    - `task`: what to train; its update scales are applied around the learner.
    - `learner`: any optimizer, or with a [`lo_components.unroll.LocalRound`][] any aggregator.
    - `num_steps`: inner steps, or rounds.
    - `inner_step`: what a step does.
    - `num_seeds`: independent runs.
    - `seeds_at_once`: how many seeds to run side by side; `None`: all of them. Fewer need less memory.
    - `key`: for initial parameters and batches.
    """
    seeds_at_once = num_seeds if seeds_at_once is None else seeds_at_once
    for name, value in dict(num_steps=num_steps, num_seeds=num_seeds, seeds_at_once=seeds_at_once).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    losses, used = _evaluate(task, learner, num_steps, inner_step, num_seeds, seeds_at_once, key)
    return Evaluation(losses, jnp.all(jnp.isfinite(losses), axis=1), used)


@eqx.filter_jit
def _evaluate(task, learner, num_steps, inner_step, num_seeds, seeds_at_once, key):
    def observed(loss, before, after, state):
        return loss, state.used if isinstance(state, AggregatorState) else None

    def run(index):
        seed_key = jax.random.fold_in(key, index)
        return _trained(task, learner, num_steps, inner_step, observed, key=seed_key)

    return jax.lax.map(run, jnp.arange(num_seeds), batch_size=seeds_at_once)


def _trained(
    task: AbstractTask,
    learner: AbstractOptimizer | AbstractAggregator,
    num_steps: int,
    inner_step: AbstractInnerStep,
    observe: Callable,
    *,
    key: PRNGKeyArray,
) -> PyTree:
    """What `observe(loss, params before, params after, state)` sees at each step of training from scratch."""
    init_key, steps_key = jax.random.split(key)
    params = task.init(key=init_key)
    total = jnp.asarray(num_steps, jnp.int32)

    def step(carry, key):
        before, state = carry
        loss, after, state = inner_step.step(learner, task, before, state, total, key=key)
        return (after, state), observe(loss, before, after, state)

    return jax.lax.scan(step, (params, inner_step.init(learner, params)), jax.random.split(steps_key, num_steps))[1]


@typechecked
def step_sizes(
    task: AbstractTask, optimizer: AbstractOptimizer, num_steps: int, *, key: PRNGKeyArray
) -> dict[str, Float[Array, " steps"]]:
    r"""How far an optimizer moves each array at each step: $\lVert p_{t+1} - p_t \rVert / \sqrt n$ for $n$ numbers.

    Shows which layers a learned optimizer trains, and how its steps shrink.

    **Arguments:**

    - `task`, `optimizer`, `key`: as in [`lo_components.meta.evaluate`][].
    - `num_steps`: inner steps of the one run.

    **Returns:** sizes by the array's path, as in `layers/0/weight`.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    return _step_sizes(task, optimizer, num_steps, key)


@eqx.filter_jit
def _step_sizes(task, optimizer, num_steps, key):
    def sizes(loss, before, after, state):
        moves = jax.tree.map(lambda a, b: (a - b).astype(jnp.float32), after, before)
        return {path_name(p): jnp.sqrt(jnp.mean(jnp.square(x))) for p, x in jax.tree_util.tree_leaves_with_path(moves)}

    return _trained(task, optimizer, num_steps, GradientStep(), sizes, key=key)
