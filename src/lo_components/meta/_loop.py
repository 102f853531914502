import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from .._types import typechecked
from ..estimators import AbstractEstimator
from ..interop import CheckpointError, load_arrays, save_arrays
from ._run_folder import RunFolder
from ._trainer import MetaMetrics, MetaState, init_meta_state, meta_step


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its files, and how often it writes a checkpoint.

    **Arguments:**

    - `folder`: made if missing; holds `config.json`, `log.jsonl` and `checkpoint.safetensors`.
    - `config`: what identifies the run, as JSON; a folder with another configuration is refused.
    - `every`: meta-steps between two checkpoints.
    """

    folder: str | Path
    config: Mapping[str, Any]
    every: int = 100

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}.")


@typechecked
def meta_train(
    learner: Any,
    estimator: AbstractEstimator,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    log_every: int = 10,
    progress: str | None = "meta-train",
    key: PRNGKeyArray,
) -> Any:
    """Meta-train a learner: `num_steps` calls of one compiled `meta_step`, with a progress bar, a log and checkpoints.

    Interrupted (Ctrl-C included) and called again with the same arguments, it continues from the last checkpoint to the
    same learner, bit for bit, as a run that was never interrupted. A finished run is read, not repeated.

    **Arguments:**

    - `learner`: the initial learner, for instance a [`lo_components.optimizers.LearnedOptimizer`][].
    - `estimator`: of the meta-gradient; holds the task and the unroll.
    - `optimizer`: the meta-optimizer, for instance [`lo_components.meta.meta_optimizer`][].
    - `num_steps`: meta-steps in all.
    - `checkpoints`: where to keep the log and the checkpoints; `None`: nowhere.
    - `log_every`: meta-steps between two lines of the log and two refreshes of the bar.
    - `progress`: the bar's label; `None`: no bar.
    - `key`: for noise, initial parameters and batches.

    **Returns:** the meta-trained learner.
    """
    if num_steps < 1 or log_every < 1:
        raise ValueError(f"`num_steps` and `log_every` must be at least 1, got {num_steps} and {log_every}.")
    folder = None if checkpoints is None else RunFolder.open(checkpoints.folder, checkpoints.config)
    state = _init(learner, estimator, optimizer, key=key)
    if folder is not None and folder.checkpoint.exists():
        state = _resumed(folder, state)
    # The compiled step reuses its input's memory, which `jit` may have made the caller's own arrays.
    state = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, state)
    start = int(state.step)
    if start > num_steps:
        raise ValueError(f"`num_steps` is {num_steps}, but this run has taken {start} meta-steps already.")
    if start == num_steps:
        return state.learner
    if folder is not None:
        folder.truncate_log(start)
    with _Bar(progress, start, num_steps) as bar:
        pending, began = [], time.perf_counter()
        for index in range(start, num_steps):
            state, metrics = _step((estimator, optimizer), state)
            pending.append(metrics)
            last = index + 1 == num_steps
            if last or (index + 1) % log_every == 0:
                row = _mean_row(index + 1, pending, time.perf_counter() - began)
                pending, began = [], time.perf_counter()
                bar.show(row)
                if folder is not None:
                    folder.log(row)
            if checkpoints is not None and folder is not None and (last or (index + 1) % checkpoints.every == 0):
                save_arrays(folder.checkpoint, state, metadata={"step": index + 1, "config": folder.config})
    return state.learner


def _resumed(folder: RunFolder, state: MetaState) -> MetaState:
    """The state in the folder's checkpoint."""
    try:
        state, metadata = load_arrays(folder.checkpoint, state)
        if metadata.get("config") != folder.config:
            raise CheckpointError(f"`{folder.checkpoint}` belongs to a run with another configuration.")
    except CheckpointError as error:
        raise CheckpointError(f"{error} It was left untouched. Delete it to start the run over.") from None
    return state


_init = eqx.filter_jit(init_meta_state)


@eqx.filter_jit(donate="all-except-first")
def _step(
    fixed: tuple[AbstractEstimator, optax.GradientTransformation], state: MetaState
) -> tuple[MetaState, MetaMetrics]:
    """`meta_step`, compiled; the old state's memory is reused for the new."""
    return meta_step(state, *fixed)


def _mean_row(step: int, metrics: list, seconds: float) -> dict[str, int | float]:
    """One line of the log: the means over the meta-steps since the last one."""
    fetched = jax.device_get(metrics)
    names = [field.name for field in dataclasses.fields(fetched[0])]
    means = {name: float(sum(getattr(m, name) for m in fetched) / len(fetched)) for name in names}
    return {"step": step, **means, "steps_per_second": len(fetched) / seconds}


class _Bar:
    """A progress bar with the meta-loss and the share of finite particles; none without a label."""

    def __init__(self, label: str | None, start: int, total: int):
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", disable=label is None)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def show(self, row: dict[str, int | float]) -> None:
        skipped = f", {row['skipped']:.0%} skipped" if row["skipped"] else ""
        self._bar.set_postfix_str(f"meta-loss {row['loss']:.4f}, {row['finite']:.0%} finite{skipped}", refresh=False)
        self._bar.update(int(row["step"]) - self._bar.n)


def read_log(folder: str | Path) -> list[dict[str, int | float]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
