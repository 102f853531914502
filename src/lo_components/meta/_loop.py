import contextlib
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from .._learner import Learner
from .._types import typechecked
from ..estimators import AbstractEstimator
from ._checkpoints import Checkpoints, DurableRun
from ._constants import constants
from ._processes import is_first, stop_requests, to_host
from ._trainer import MetaMetrics, MetaState, init_meta_state, meta_optimizer, meta_step

STOPPED = 143  # 128 + SIGTERM, the exit status of a process that the signal ended


@typechecked
def meta_train(
    learner: Learner,
    estimator: AbstractEstimator,
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
    checkpoints: Checkpoints | None = None,
    log_every: int = 10,
    progress: str | None = "meta-train",
    key: PRNGKeyArray,
) -> Any:
    """Meta-train a learner: call a compiled `meta_step` `num_steps` times, with a progress bar, a log and checkpoints.

    If a run was interrupted in any way, the same call continues from the newest intact checkpoint and returns the same
    learner, bit for bit, as a run that was never interrupted. Checkpoints that are truncated, corrupt or from another
    run are renamed to `*.corrupt`, with a warning. If the run is finished, its learner is loaded and returned.

    If there are checkpoints and the caller is in the main thread, SIGTERM finishes the meta-step, writes a checkpoint
    and exits with status 143, the status of a process that the signal ended, so a batch scheduler sees an unfinished
    job. If several processes run together, the first one writes the files into a folder that all can read, and a
    SIGTERM to any process stops all of them after the same meta-step, with or without checkpoints.

    **Arguments:**

    - `learner`: the initial learner, for instance a [`lo_components.optimizers.LearnedOptimizer`][].
    - `estimator`: the estimator of the meta-gradient, which holds the task and the unroll.
    - `num_steps`: the total number of meta-steps.
    - `optimizer`: the meta-optimizer; by default that of the papers,
        [`lo_components.meta.meta_optimizer`][]`(num_steps)`.
    - `checkpoints`: the folder for the log and the checkpoints; by default neither is written.
    - `log_every`: meta-steps between two lines of the log and two updates of the progress bar.
    - `progress`: the label of the progress bar; `None` hides it.
    - `key`: for noise, initial parameters and batches.

    **Returns:** the meta-trained learner.

    Raises `ValueError` if `num_steps` or `log_every` is below 1, if the run has taken more than `num_steps` meta-steps
    already, or if the learner has nothing to learn; `FileExistsError` if the folder belongs to a run with another
    configuration or with other constants of learner or estimator (meta-optimizers are functions, so they are not
    compared); `CheckpointError` if the folder has checkpoints but none is usable; `SystemExit` after SIGTERM. Errors in
    writing a checkpoint propagate.
    """
    if num_steps < 1 or log_every < 1:
        raise ValueError(f"`num_steps` and `log_every` must be at least 1, got {num_steps} and {log_every}.")
    optimizer = meta_optimizer(num_steps) if optimizer is None else optimizer
    run = None if checkpoints is None else DurableRun(checkpoints, constants(learner, estimator))
    state = _init(learner, estimator, optimizer, key=key)
    if run is not None:
        state = run.resume(state)
    # The compiled step donates its input, which may contain the caller's own arrays.
    state = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, state)
    start = int(state.step)
    if start > num_steps:
        raise ValueError(f"`num_steps` is {num_steps}, but this run has taken {start} meta-steps already.")
    if start == num_steps:
        return state.learner
    if run is not None:
        run.truncate_log(start)
    with (
        _Bar(progress, start, num_steps) as bar,
        run or contextlib.nullcontext(),
        stop_requests(catch=run is not None) as stop_requested,
    ):
        pending, began = [], time.perf_counter()
        for step in range(start + 1, num_steps + 1):
            state, metrics = _step((estimator, optimizer), state)
            pending.append(metrics)
            last = step == num_steps
            if last or step % log_every == 0:
                row = _mean_row(step, pending, time.perf_counter() - began)
                pending, began = [], time.perf_counter()
                bar.show(row)
                if run is not None:
                    run.log(row)
            if run is not None:
                run.after_step(step, state, metrics.meta_loss, last=last)
            if stop_requested(step):
                if run is not None:
                    run.stop(step, state, last=last)
                raise SystemExit(STOPPED)
    return state.learner


_init = eqx.filter_jit(init_meta_state)


@eqx.filter_jit(donate="all-except-first")
def _step(
    fixed: tuple[AbstractEstimator, optax.GradientTransformation], state: MetaState
) -> tuple[MetaState, MetaMetrics]:
    """The compiled `meta_step`, which reuses the memory of the old state for the new one."""
    return meta_step(state, *fixed)


def _mean_row(step: int, metrics: list, seconds: float) -> dict[str, int | float]:
    """One line of the log: means over the meta-steps since the previous line."""
    rows = [{**vars(m), **m.diagnostics} for m in to_host(metrics)]
    means = {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0] if name != "diagnostics"}
    return {"step": step, **means, "steps_per_second": len(rows) / seconds}


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


def read_log(folder: str | Path) -> list[dict[str, int | float]]:
    """The rows of the log of a run.

    **Arguments:**

    - `folder`: the folder of the run.
    """
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
