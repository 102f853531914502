import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._learner import Learner
from .._types import Params
from ..tasks import AbstractTask, AbstractTaskFamily
from ._horizons import AbstractHorizon, as_horizon
from ._inner import AbstractInnerStep, GradientStep
from ._meta_loss import AbstractMetaLoss, MeanLoss


class Episode(eqx.Module):
    """The inner state that the members of an antithetic pair have in common: the task and the progress of training.

    **Arguments:**

    - `sampled`: the sample of the task family for this episode; `None` for a single task.
    - `windows`: truncation windows of this episode unrolled so far.
    - `earlier_windows`: truncation windows that the particle has unrolled before this episode.
    - `step`: steps of the horizon used so far. A staggered first episode starts above 0.
    - `horizon`: the length of the episode in steps.
    - `done`: whether the next window begins a new episode.
    """

    sampled: PyTree
    windows: Int[Array, "..."]
    earlier_windows: Int[Array, "..."]
    step: Int[Array, "..."]
    horizon: Int[Array, "..."]
    done: Bool[Array, "..."]

    @property
    def window(self) -> Int[Array, "..."]:
        """The index of the next truncation window in its episode; 0 if that window begins a new episode."""
        return jnp.where(self.done, 0, self.windows)


class TrainState(eqx.Module):
    """The inner state that each member of an antithetic pair has separately.

    **Arguments:**

    - `params`: the parameters of the model being trained.
    - `learner_state`: the state of the learner.
    - `last_loss`: the loss of the last step. Before the first step, it is the loss of the initial parameters if the
        unroll has a `split`, and otherwise 0, which is not used.
    """

    params: Params
    learner_state: PyTree
    last_loss: Float[Array, "..."]


class InnerState(eqx.Module):
    """Inner training between two truncation windows.

    **Arguments:**

    - `episode`: the task and the progress of its training.
    - `train`: parameters and learner state.
    """

    episode: Episode
    train: TrainState


class UnrollOutput(eqx.Module):
    """The result of one truncation window.

    **Arguments:**

    - `losses`: one per step, clipped at the task's `max_loss`. Non-finite losses count as `max_loss`.
    - `previous_loss`: the last loss before the window. In the first window of an episode it is the loss of the initial
        parameters, which is `losses[0]` if `split` is `None`.
    - `clipped`: the fraction of steps whose loss was clipped or not finite.
    - `finite`: whether every loss and every parameter stayed finite.
    - `state`: the state for the next window.
    """

    losses: Float[Array, " window"]
    previous_loss: Float[Array, ""]
    clipped: Float[Array, ""]
    finite: Bool[Array, ""]
    state: InnerState


class TruncatedUnroll(eqx.Module):
    """Inner training of a task, one truncation window of steps at a time.

    Horizons are rounded up to whole numbers of windows, so episodes end at window boundaries. The next window then
    begins a new episode with freshly initialized parameters. First episodes are staggered so that particles do not
    restart in lockstep: a random part of the horizon, in whole windows, is skipped, while the step count of the learner
    starts at 0. If a loss or a parameter becomes non-finite, the episode ends with that window.

    **Arguments:**

    - `task`: the task to train, or a task family from which each episode samples one.
    - `horizon`: the length of the episodes. An integer becomes a [`lo_components.unroll.ConstantHorizon`][].
    - `window`: steps per call.
    - `inner_step`: one step of inner training; by default [`lo_components.unroll.GradientStep`][].
    - `meta_loss`: maps the losses of an episode to its meta-loss.
    - `split`: the data on which losses are computed. By default (`None`) the training batch of the step, before the
        update, at no extra cost. With the name of one of the task's splits, for instance `"train"` or
        `"outer_valid"`, a fresh batch of that split, after the update.

    Raises `TypeError` if `horizon` is neither an integer nor a horizon, and `ValueError` if `horizon` or `window` is
    below 1 or `window` is not an integer.

    **Example:**

    ```pycon
    >>> task = loc.tasks.Quadratic(start=jnp.ones(4))
    >>> horizon = loc.unroll.LogUniformHorizon(100, 1000)
    >>> unroll = loc.unroll.TruncatedUnroll(task, horizon, window=50)
    ```
    """

    task: AbstractTask | AbstractTaskFamily
    horizon: AbstractHorizon = eqx.field(converter=as_horizon)
    window: int = eqx.field(static=True)
    inner_step: AbstractInnerStep = GradientStep()
    meta_loss: AbstractMetaLoss = MeanLoss()
    split: str | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if not isinstance(self.window, int) or isinstance(self.window, bool) or self.window < 1:
            raise ValueError(f"`window` must be at least 1 and a whole number, got {self.window!r}.")

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> InnerState:
        """The state before the first truncation window: a staggered episode, part of whose horizon is skipped.

        **Arguments:**

        - `learner`: an optimizer or an aggregator.
        - `key`: for the task, the horizon, the initial parameters and the stagger.
        """
        stagger_key, key = jax.random.split(key)
        state = self.new_episode(learner, key=key)
        spent = jax.random.randint(stagger_key, (), 0, state.episode.horizon // self.window) * self.window
        return eqx.tree_at(lambda s: s.episode.step, state, spent)

    def new_episode(
        self, learner: Learner, *, windows_so_far: Int[Array, ""] | int = 0, key: PRNGKeyArray
    ) -> InnerState:
        """The state before the first step of a new episode.

        **Arguments:**

        - `learner`: an optimizer or an aggregator.
        - `windows_so_far`: truncation windows that the particle has unrolled before, for horizons that depend on it.
        - `key`: for the task, the horizon and the initial parameters.
        """
        init_key, horizon_key, family_key = jax.random.split(key, 3)
        sampled = self.task.sample(key=family_key) if isinstance(self.task, AbstractTaskFamily) else None
        task = self._task(sampled)
        params = task.init(key=init_key)
        loss = jnp.zeros((), jnp.float32)
        if self.split is not None:
            loss, _ = _clipped(self._held_out_loss(task, params, key=jax.random.fold_in(key, 3)), task)
        earlier, zero = jnp.asarray(windows_so_far, jnp.int32), jnp.zeros((), jnp.int32)
        length = self.horizon.sample(self.window, windows_so_far=earlier, key=horizon_key)
        horizon = self.window * jnp.maximum(-(-length // self.window), 1)
        episode = Episode(sampled, zero, earlier, zero, horizon, jnp.asarray(False))
        return InnerState(episode, TrainState(params, self.inner_step.init(learner, params), loss))

    def __call__(self, learner: Learner, state: InnerState, *, key: PRNGKeyArray) -> UnrollOutput:
        """Train for one truncation window, in a new episode if the last one is done.

        **Arguments:**

        - `learner`: an optimizer or an aggregator.
        - `state`: from `init`, `new_episode` or the previous window.
        - `key`: for batches, and for a new episode.

        **Returns:** the losses of the window and the next state.
        """
        new_key, steps_key = jax.random.split(key)
        so_far = state.episode.earlier_windows + state.episode.windows
        fresh = self.new_episode(learner, windows_so_far=so_far, key=new_key)
        state = _tree.where(state.episode.done, fresh, state)
        episode, train = state.episode, state.train
        task = self._task(episode.sampled)

        def step(carry, key):
            params, learner_state = carry
            key, held_out_key = (key, key) if self.split is None else jax.random.split(key)
            loss, params, learner_state = self.inner_step.step(
                learner, task, params, learner_state, episode.horizon, key=key
            )
            if self.split is not None:
                loss = self._held_out_loss(task, params, key=held_out_key)
            return (params, learner_state), loss.astype(jnp.float32)

        (params, learner_state), raw = jax.lax.scan(
            step, (train.params, train.learner_state), jax.random.split(steps_key, self.window)
        )
        losses, small = _clipped(raw, task)
        previous_loss = train.last_loss
        if self.split is None:
            previous_loss = jnp.where(episode.windows == 0, losses[0], previous_loss)
        finite = jnp.all(jnp.isfinite(raw)) & _tree.all_finite(params)
        spent = episode.step + self.window
        done = (spent >= episode.horizon) | ~finite
        return UnrollOutput(
            losses,
            previous_loss,
            1.0 - jnp.mean(small, dtype=jnp.float32),
            finite,
            InnerState(
                Episode(episode.sampled, episode.windows + 1, episode.earlier_windows, spent, episode.horizon, done),
                TrainState(params, learner_state, losses[-1]),
            ),
        )

    def contribution(
        self, losses: Float[Array, " window"], previous_loss: Float[Array, ""], episode: Episode
    ) -> Float[Array, ""]:
        """The contribution of one truncation window to the meta-loss of its episode.

        **Arguments:**

        - `losses`, `previous_loss`: as in [`lo_components.unroll.UnrollOutput`][].
        - `episode`: the episode after the window.
        """
        # An episode that ended early counts only the windows that were run.
        length = jnp.where(episode.done, episode.step, episode.horizon)
        num_windows = (length // self.window).astype(jnp.float32)
        return self.meta_loss(losses, previous_loss, num_windows, episode.done)

    def _task(self, sampled: PyTree) -> AbstractTask:
        return self.task.task(sampled) if isinstance(self.task, AbstractTaskFamily) else self.task

    def _held_out_loss(self, task: AbstractTask, params: Params, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """The loss on a fresh batch of `split`."""
        batch_key, loss_key = jax.random.split(key)
        assert self.split is not None
        return task.loss(params, task.batch(key=batch_key, split=self.split), key=loss_key)


def _clipped(losses: Float[Array, "*n"], task: AbstractTask) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """The losses clipped at `max_loss`, which also replaces non-finite ones, and a mask of the unchanged losses."""
    losses = losses.astype(jnp.float32)
    small = jnp.isfinite(losses) & (losses < task.max_loss)
    return jnp.where(small, losses, task.max_loss), small
