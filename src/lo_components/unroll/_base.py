from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._types import Params
from ..tasks import AbstractTask
from ._horizons import AbstractHorizon
from ._inner import AbstractInnerStep, GradientStep


class InnerState(eqx.Module):
    """An inner training run between two windows.

    **Arguments:**

    - `params`, `learner_state`: of the optimizee and of the learner.
    - `step`: steps of the episode's horizon that are spent.
    - `horizon`: the episode's length in steps.
    - `done`: whether the next window starts a new episode.
    """

    params: Params
    learner_state: PyTree
    step: Int[Array, "..."]
    horizon: Int[Array, "..."]
    done: Bool[Array, "..."]


class UnrollOutput(eqx.Module):
    """What one window gives.

    **Arguments:**

    - `losses`: the meta-loss of each step: the loss before the update, clipped at the task's `max_loss`; a non-finite
        loss counts as `max_loss`.
    - `finite`: whether every loss and every parameter stayed finite.
    - `state`: for the next window.
    """

    losses: Float[Array, " window"]
    finite: Bool[Array, ""]
    state: InnerState


class TruncatedUnroll(eqx.Module):
    """Inner training of a task, a window of steps at a time.

    Episodes end on window boundaries only, since horizons are whole numbers of windows; the window after an episode's
    last begins with freshly initialized parameters. First episodes are staggered: part of their horizon, in whole
    windows, counts as spent, so that particles do not restart in lockstep; the learner's own step count starts at 0.
    A run whose loss or parameters become non-finite ends its episode with the window.

    **Arguments:**

    - `task`: what to train.
    - `horizon`: how long episodes last.
    - `window`: steps per call.
    - `inner_step`: what a step does; by default [`lo_components.unroll.GradientStep`][].
    """

    task: AbstractTask
    horizon: AbstractHorizon
    window: int = eqx.field(static=True)
    inner_step: AbstractInnerStep = GradientStep()

    def __check_init__(self):
        if not isinstance(self.horizon, AbstractHorizon):
            raise TypeError(f"`horizon` must be a horizon, for instance `ConstantHorizon(400)`, got {self.horizon!r}.")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"`window` must be at least 1 and a whole number, got {self.window!r}.")

    def init(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        """A first episode, part of whose horizon is spent."""
        stagger_key, key = jax.random.split(key)
        state = self._start(learner, key=key)
        spent = jax.random.randint(stagger_key, (), 0, state.horizon // self.window) * self.window
        return eqx.tree_at(lambda s: s.step, state, spent)

    def __call__(self, learner: Any, state: InnerState, *, key: PRNGKeyArray) -> UnrollOutput:
        """Train for one window."""
        start_key, steps_key = jax.random.split(key)
        state = _tree.where(state.done, self._start(learner, key=start_key), state)

        def step(carry, key):
            params, learner_state = carry
            loss, params, learner_state = self.inner_step.step(
                learner, self.task, params, learner_state, state.horizon, key=key
            )
            return (params, learner_state), loss

        (params, learner_state), losses = jax.lax.scan(
            step, (state.params, state.learner_state), jax.random.split(steps_key, self.window)
        )
        finite = jnp.all(jnp.isfinite(losses)) & _tree.all_finite(params)
        spent = state.step + self.window
        after = InnerState(params, learner_state, spent, state.horizon, (spent >= state.horizon) | ~finite)
        clipped = jnp.where(jnp.isfinite(losses), jnp.minimum(losses, self.task.max_loss), self.task.max_loss)
        return UnrollOutput(clipped, finite, after)

    def _start(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        init_key, horizon_key = jax.random.split(key)
        params = self.task.init(key=init_key)
        return InnerState(
            params,
            self.inner_step.init(learner, params),
            jnp.zeros((), jnp.int32),
            self.horizon.sample(self.window, key=horizon_key),
            jnp.asarray(False),
        )
