import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from .._learner import Learner
from .._types import typechecked
from ..data import AbstractBatchIterator
from ..estimators import AbstractEstimator
from ..tasks import with_window
from ._arguments import checked
from ._checkpoints import Checkpoints, DurableRun
from ._constants import constants
from ._log import Log, named_numbers
from ._processes import is_first, stop_requests
from ._stream import Windows, continued
from ._trainer import MetaMetrics, MetaOptimizer, MetaState, init_meta_state, meta_optimizer, meta_step


@checked
@typechecked
def meta_train(
    learner: Learner,
    estimator: AbstractEstimator,
    *,
    num_steps: int,
    optimizer: MetaOptimizer | None = None,
    checkpoints: Checkpoints | None = None,
    log_every: int = 10,
    callback: Callable[[int, Any], Mapping[str, Any] | None] | None = None,
    callback_every: int | None = None,
    stream: AbstractBatchIterator | None = None,
    progress: str | None = "meta-train",
    key: PRNGKeyArray,
) -> Any:
    """Meta-train a learner: call a compiled `meta_step` `num_steps` times, with a progress bar, a log and checkpoints.

    If a run was interrupted in any way, the same call continues from the newest intact checkpoint and returns the same
    learner, bit for bit, as a run that was never interrupted; its log has the same rows, up to times. Checkpoints that
    are truncated, corrupt or from another run are renamed to `*.corrupt`, with a warning. If the run is finished, its
    learner is loaded and returned.

    If there are checkpoints and the caller is in the main thread, SIGTERM and SIGINT (Ctrl-C) finish the meta-step and
    write a checkpoint. SIGTERM then exits with status 143, the status of a process that the signal ended, so a batch
    scheduler sees an unfinished job; SIGINT raises `KeyboardInterrupt`, and a second one does so at once. If several
    processes run together, the first one writes the files into a folder that all can read, and a signal to any process
    stops all of them after the same meta-step, with or without checkpoints.

    Besides the numbers of [`lo_components.meta.MetaMetrics`][], which are means over the meta-steps since the last row,
    a row of the log has the meta-step (`step`), the inner steps of all particles so far (`inner_steps`), the seconds of
    training so far, without callbacks and over all resumed parts (`seconds`), the rate since the last row
    (`steps_per_second`), and the learning rate if the state of the meta-optimizer has one (`learning_rate`).

    **Arguments:**

    - `learner`: the initial learner, for instance a [`lo_components.optimizers.LearnedOptimizer`][].
    - `estimator`: the estimator of the meta-gradient, which holds the task and the unroll.
    - `num_steps`: the total number of meta-steps.
    - `optimizer`: the meta-optimizer, an optax transformation or `optax.MultiSteps`; by default that of the papers,
        [`lo_components.meta.meta_optimizer`][]`(num_steps)`.
    - `checkpoints`: the folder for the log and the checkpoints; by default neither is written.
    - `log_every`: meta-steps between two lines of the log and two updates of the progress bar.
    - `callback`: called with the number of meta-steps and the learner, whose arrays it may keep, for instance to
        meta-validate. It may return named numbers, which become columns of that row of the log. With several processes,
        all call it, and the log has the numbers of the first.
    - `callback_every`: meta-steps between two calls of `callback`, a multiple of `log_every`, which is the default. The
        last call is after the last meta-step.
    - `stream`: batches, for instance from [`lo_components.data.pipeline`][]. Each meta-step takes the next window of
        them for every [`lo_components.tasks.Streamed`][] in the estimator; a thread reads it while the device computes.
        The run begins at the present position of the stream, to which it is restored at the end; checkpoints hold the
        position of their meta-step.
    - `progress`: the label of the progress bar; `None` hides it.
    - `key`: for noise, initial parameters and batches.

    **Returns:** the meta-trained learner.

    Raises `ValueError` if `num_steps` or `log_every` is below 1, if `callback_every` is no multiple of `log_every` or
    given without `callback`, if the run has taken more than `num_steps` meta-steps already, if the learner has nothing
    to learn or is theta alone, if `callback` returns a name that the log has already, or if `stream` ends, is not for
    the estimator or not the one that the run began with; `TypeError` if `learner` is no
    learner, for instance a recipe instead of its result, if `optimizer` is no optax transformation, or if `callback`
    returns anything but named numbers; `FileExistsError` if the folder is in use by another process, or belongs to a
    run with another configuration, `key`, initial theta, meta-optimizer, data or constants; `CheckpointError` if the
    folder has checkpoints but none is usable; `SystemExit` after SIGTERM; `KeyboardInterrupt` after SIGINT. Errors
    of `callback`, of `stream` and in writing a checkpoint propagate.

    **Example:**

    ```pycon
    >>> unroll = loc.unroll.TruncatedUnroll(loc.tasks.Quadratic(start=jnp.ones(4)), horizon=10, window=5)
    >>> sgd, pes = loc.OptaxOptimizer(optax.sgd, jnp.float32(0.1)), loc.estimators.PES(unroll, std=0.01)
    >>> learner = loc.meta.meta_train(sgd, pes, num_steps=50, progress=None, key=jax.random.key(0))
    >>> learner.hyperparameters["learning_rate"] > 0.1
    Array(True, dtype=bool)
    ```
    """
    if num_steps < 1 or log_every < 1:
        raise ValueError(f"`num_steps` and `log_every` must be at least 1, got {num_steps} and {log_every}.")
    if callback_every is not None and (callback is None or callback_every < 1 or callback_every % log_every):
        raise ValueError(
            f"`callback_every` needs a `callback` and must be a multiple of `log_every`, got {callback_every} with "
            f"`log_every={log_every}`."
        )
    # The schedule of the default optimizer depends on the number of steps, so a longer run is another run.
    default = {"num_steps of the default optimizer (pass `optimizer` to train longer)": str(num_steps)}
    parts: dict[str, Any] = default if optimizer is None else {}
    optimizer = meta_optimizer(num_steps) if optimizer is None else optimizer
    source = None if stream is None else Windows(stream, estimator)
    # What is in a window does not identify a run.
    without_window = estimator if source is None else with_window(estimator, None)
    with contextlib.ExitStack() as stack:
        run, parts["stream"] = None, "none"
        if source is not None:
            estimator = stack.enter_context(source).next()
            parts |= {"stream": "passed", "stream and its first window": source.identity()}
        if checkpoints is not None:
            run = DurableRun(checkpoints, lambda: constants(learner, without_window, optimizer, key=key, **parts))
            stack.enter_context(run)
        state, metadata = _init(learner, estimator, optimizer, key=key), {}
        if run is not None:
            state, metadata = run.resume(state)
        start = int(state.step)
        if start > num_steps:
            raise ValueError(f"`num_steps` is {num_steps}, but this run has taken {start} meta-steps already.")
        if start == num_steps:
            return state.learner
        if metadata:
            estimator = continued(source, metadata.get("stream"), estimator)
        if run is not None:
            run.truncate_log(start)
        bar = stack.enter_context(_Bar(progress, start, num_steps))
        stop_requested = stack.enter_context(stop_requests(catch=run is not None))
        log = Log(metadata.get("log", {}))

        def to_save() -> dict[str, Any]:
            return log.metadata() | ({} if source is None else {"stream": source.state()})

        for step in range(start + 1, num_steps + 1):
            state, metrics = _step((estimator, optimizer), state)
            log.add(metrics)
            last = step == num_steps
            if last or step % log_every == 0:
                row = log.row(step, state)
                if callback is not None and (last or step % (callback_every or log_every) == 0):
                    with log.paused():
                        row |= named_numbers(callback(step, _copy(state.learner)), row)
                bar.show(row)
                if run is not None:
                    run.log(row)
            if run is not None:
                run.after_step(step, state, metrics.meta_loss, to_save, last=last)
            if (reason := stop_requested(step)) is not None:
                if run is not None:
                    run.stop(step, state, reason, to_save, last=last)
                raise reason
            if source is not None and not last:
                estimator = source.next(metrics.loss)
    return state.learner


@eqx.filter_jit
def _init(learner: Learner, estimator: AbstractEstimator, optimizer: MetaOptimizer, *, key: PRNGKeyArray) -> MetaState:
    """The compiled `init_meta_state`, copied, since the step donates it and it contains the caller's own arrays."""
    return _copy(init_meta_state(learner, estimator, optimizer, key=key))


@eqx.filter_jit(donate="all-except-first")
def _step(fixed: tuple[AbstractEstimator, MetaOptimizer], state: MetaState) -> tuple[MetaState, MetaMetrics]:
    """The compiled `meta_step`, which reuses the memory of the old state for the new one."""
    return meta_step(state, *fixed)


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, tree)


class _Bar:
    """A progress bar with the meta-loss, the loss and the fraction of finite particles; hidden without a label."""

    def __init__(self, label: str | None, start: int, total: int):
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", disable=label is None or not is_first())

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def show(self, row: dict[str, int | float]) -> None:
        skipped = f", {row['skipped']:.0%} skipped" if row["skipped"] else ""
        losses = f"meta-loss {row['meta_loss']:.4f}, loss {row['loss']:.4f}"
        self._bar.set_postfix_str(f"{losses}, {row['finite']:.0%} finite{skipped}", refresh=False)
        self._bar.update(int(row["step"]) - self._bar.n)
