from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._types import Params
from ..tasks import AbstractTask, AbstractTaskFamily
from ._horizons import AbstractHorizon
from ._inner import AbstractInnerStep, GradientStep
from ._meta_loss import AbstractMetaLoss, MeanLoss


class InnerState(eqx.Module):
    """An inner training run between two windows.

    **Arguments:**

    - `params`, `learner_state`: of the optimizee and of the learner.
    - `last_loss`: of the last step; NaN in an episode that has not begun.
    - `drawn`: what a task family drew for the episode; `None` for a task.
    - `step`: steps of the episode's horizon that are spent.
    - `horizon`: the episode's length in steps.
    - `done`: whether the next window starts a new episode.
    """

    params: Params
    learner_state: PyTree
    last_loss: Float[Array, "..."]
    drawn: PyTree
    step: Int[Array, "..."]
    horizon: Int[Array, "..."]
    done: Bool[Array, "..."]


class UnrollOutput(eqx.Module):
    """What one window gives.

    **Arguments:**

    - `losses`: of each step, clipped at the task's `max_loss`; a non-finite loss counts as `max_loss`.
    - `clipped`: the share of steps whose loss was clipped, or not finite.
    - `finite`: whether every loss and every parameter stayed finite.
    - `state`: for the next window.
    """

    losses: Float[Array, " window"]
    clipped: Float[Array, ""]
    finite: Bool[Array, ""]
    state: InnerState


class TruncatedUnroll(eqx.Module):
    """Inner training of a task, a window of steps at a time.

    Episodes end on window boundaries only, since horizons are whole numbers of windows; the window after an episode's
    last begins with freshly initialized parameters. First episodes are staggered: part of their horizon, in whole
    windows, counts as spent, so that particles do not restart in lockstep; the learner's own step count starts at 0.
    A run whose loss or parameters become non-finite ends its episode with the window.

    **Arguments:**

    - `task`: what to train: a task, or a family from which each episode draws one.
    - `horizon`: how long episodes last.
    - `window`: steps per call.
    - `inner_step`: what a step does; by default [`lo_components.unroll.GradientStep`][].
    - `meta_loss`: what an episode's losses amount to.
    - `split`: where the losses are taken. `None`: on the batch that a step trains on, before the update, which costs
        nothing. The name of one of the task's splits: after the update, on a fresh batch of that split, for instance
        `"train"` or `"outer_valid"`.
    """

    task: AbstractTask | AbstractTaskFamily
    horizon: AbstractHorizon
    window: int = eqx.field(static=True)
    inner_step: AbstractInnerStep = GradientStep()
    meta_loss: AbstractMetaLoss = MeanLoss()
    split: str | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if not isinstance(self.horizon, AbstractHorizon):
            raise TypeError(f"`horizon` must be a horizon, for instance `ConstantHorizon(400)`, got {self.horizon!r}.")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"`window` must be at least 1 and a whole number, got {self.window!r}.")

    def init(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        """A first episode, part of whose horizon is spent."""
        stagger_key, key = jax.random.split(key)
        state = self.start(learner, key=key)
        spent = jax.random.randint(stagger_key, (), 0, state.horizon // self.window) * self.window
        return eqx.tree_at(lambda s: s.step, state, spent)

    def start(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        """A new episode."""
        init_key, horizon_key, family_key = jax.random.split(key, 3)
        drawn = self.task.sample(key=family_key) if isinstance(self.task, AbstractTaskFamily) else None
        params = self._task(drawn).init(key=init_key)
        return InnerState(
            params,
            self.inner_step.init(learner, params),
            jnp.full((), jnp.nan, jnp.float32),
            drawn,
            jnp.zeros((), jnp.int32),
            self.horizon.sample(self.window, key=horizon_key),
            jnp.asarray(False),
        )

    def __call__(self, learner: Any, state: InnerState, *, key: PRNGKeyArray) -> UnrollOutput:
        """Train for one window."""
        start_key, steps_key = jax.random.split(key)
        state = _tree.where(state.done, self.start(learner, key=start_key), state)
        task = self._task(state.drawn)

        def step(carry, key):
            params, learner_state = carry
            key, held_out_key = (key, key) if self.split is None else jax.random.split(key)
            loss, params, learner_state = self.inner_step.step(
                learner, task, params, learner_state, state.horizon, key=key
            )
            if self.split is not None:
                batch_key, loss_key = jax.random.split(held_out_key)
                loss = task.loss(params, task.batch(key=batch_key, split=self.split), key=loss_key)
            return (params, learner_state), loss.astype(jnp.float32)

        (params, learner_state), losses = jax.lax.scan(
            step, (state.params, state.learner_state), jax.random.split(steps_key, self.window)
        )
        small = jnp.isfinite(losses) & (losses < task.max_loss)
        clipped = jnp.where(small, losses, task.max_loss)
        finite = jnp.all(jnp.isfinite(losses)) & _tree.all_finite(params)
        spent = state.step + self.window
        done = (spent >= state.horizon) | ~finite
        return UnrollOutput(
            clipped,
            1.0 - jnp.mean(small, dtype=jnp.float32),
            finite,
            InnerState(params, learner_state, clipped[-1], state.drawn, spent, state.horizon, done),
        )

    def share(
        self, losses: Float[Array, " window"], last_loss: Float[Array, ""], before: InnerState, after: InnerState
    ) -> Float[Array, ""]:
        """The share of a window in its episode's meta-loss.

        **Arguments:**

        - `losses`: of the window, as in [`lo_components.unroll.UnrollOutput`][].
        - `last_loss`: the one in `before`.
        - `before`, `after`: the states around the window.
        """
        # An episode that ends early has as many windows as it took.
        num_windows = (jnp.where(after.done, after.step, after.horizon) // self.window).astype(jnp.float32)
        previous = jnp.where(before.done, jnp.nan, last_loss)
        return self.meta_loss(losses, previous, num_windows, after.done)

    def _task(self, drawn: PyTree) -> AbstractTask:
        return self.task.task(drawn) if isinstance(self.task, AbstractTaskFamily) else self.task
