import concurrent.futures
import contextlib
import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from .._atomic import remove_temporaries
from .._description import RESERVED, origin, version
from ..weights import CheckpointError, load_arrays, save_arrays
from ._processes import by_first, from_first, is_first, placed_like, to_host
from ._run_folder import RunFolder
from ._trainer import MetaState


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The folder of a run, the interval between its checkpoints, and the number of checkpoints to keep.

    **Arguments:**

    - `folder`: created if missing, with `~` for the home folder; holds `config.json`, `constants.json`, `log.jsonl`,
      `best.safetensors` and the newest checkpoints, named after their meta-step, for instance
      `checkpoint-00000200.safetensors`.
    - `config`: identifies the run, and must be serializable as JSON. A run raises an error if its folder holds another
      configuration, or checkpoints of a run that began with another key, theta, meta-optimizer or data, or with other
      constants of learner or estimator (`std`, horizons, windows, batch sizes, widths).
    - `every`: meta-steps between two checkpoints. The best checkpoint is the one with the lowest mean meta-loss over
      the `every` meta-steps before it. If only the last window of an episode contributes to the meta-loss, `every` must
      be long enough for each particle to end several episodes. A checkpoint that is written early, at the end of a run
      or after a signal, cannot become the best.
    - `keep`: how many of the newest checkpoints to keep; with 2 or more, a run can resume if the newest one is corrupt.

    Raises `ValueError` if `every` or `keep` is below 1.
    """

    folder: str | Path
    config: Mapping[str, Any]
    every: int = 100
    keep: int = 2

    def __post_init__(self):
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


class DurableRun:
    """The log and the checkpoints of a run that may be killed at any time, as a context manager.

    One background thread writes checkpoints, one after the other, while the loop goes on. If there are several
    processes, all call the same methods at the same steps, and only the first one writes, and locks the folder.

    **Arguments:**

    - `settings`: the folder and the intervals.
    - `constants`: identify the run; only the first process calls this function.
    """

    def __init__(self, settings: Checkpoints, constants: Callable[[], Mapping[str, str]] = dict):
        self._settings, self._constants = settings, constants
        # The meta-losses since the last multiple of `every`: `_losses` are still on the device, and `_sum` and `_count`
        # are the sum and the number of those that were already copied to the host.
        self._losses: list[jax.Array] = []
        self._sum, self._count = 0.0, 0
        self._best = math.inf
        self._stack = contextlib.ExitStack()
        self._write: concurrent.futures.Future | None = None

    def __enter__(self) -> "DurableRun":
        settings = self._settings

        def claimed() -> RunFolder:
            folder = RunFolder.open(settings.folder, settings.config)
            self._stack.enter_context(folder.locked())
            # Another process may have written to the folder before it was locked.
            folder = RunFolder.open(settings.folder, settings.config)
            folder.claim(self._constants())
            remove_temporaries(folder.path)
            return folder

        try:
            # Only the first process opens the folder. In the others `by_first` returns None.
            opened = by_first(claimed)
        except BaseException:
            self._stack.close()
            raise
        self._folder = opened or RunFolder(Path(settings.folder).expanduser(), dict(settings.config))
        self._writer = self._stack.enter_context(concurrent.futures.ThreadPoolExecutor(1, "checkpoints"))
        return self

    def resume(self, like: MetaState) -> tuple[MetaState, dict[str, Any]]:
        """The state in the newest intact checkpoint and its metadata; `like` itself if there are no checkpoints."""
        found = by_first(lambda: newest_intact(self._folder, like))
        step = from_first(-1 if found is None else found[1]["step"])
        if step < 0:
            return like, {}
        state, metadata = load_arrays(self._folder.checkpoint(step), like) if found is None else found
        self._sum, self._count = metadata.get("since", (0.0, 0))
        best = by_first(lambda: best_loss(self._folder, like))
        self._best = math.inf if best is None else best
        return placed_like(state, like), metadata

    def truncate_log(self, step: int) -> None:
        by_first(lambda: self._folder.truncate_log(step))

    def log(self, row: Mapping[str, Any]) -> None:
        if is_first():
            self._folder.log(row)

    def __exit__(self, kind, exception, traceback) -> None:
        with self._stack:
            try:
                self._wait()
            except Exception as error:
                if exception is None:
                    raise
                exception.add_note(f"The last checkpoint was not written either: {error!r}")

    def after_step(
        self,
        step: int,
        state: MetaState,
        meta_loss: jax.Array,
        more: Callable[[], Mapping[str, Any]] = dict,
        *,
        last: bool,
    ) -> None:
        """Write a checkpoint with `more` metadata if one is due, and raise the error of an earlier one that failed."""
        self._losses.append(meta_loss)
        if self._write is not None and self._write.done():
            self._wait()
        if self._due(step) or last:
            self._checkpoint(step, state, more)
        if last:
            self._wait()

    def stop(
        self,
        step: int,
        state: MetaState,
        reason: BaseException,
        more: Callable[[], Mapping[str, Any]] = dict,
        *,
        last: bool,
    ) -> None:
        """Write a checkpoint, unless this step has one already, and say how to continue."""
        if not (self._due(step) or last):
            self._checkpoint(step, state, more)
        self._wait()
        if is_first():
            from tqdm.auto import tqdm

            signal = "SIGINT" if isinstance(reason, KeyboardInterrupt) else "SIGTERM"
            tqdm.write(
                f"Stopped by {signal} after meta-step {step}. Its checkpoint is in `{self._folder.path}`. Run the same "
                "command again to continue.",
                file=sys.stderr,
            )

    def _due(self, step: int) -> bool:
        return step % self._settings.every == 0

    def _checkpoint(self, step: int, state: MetaState, more: Callable[[], Mapping[str, Any]]) -> None:
        due = self._due(step)
        for loss in to_host(self._losses):
            self._sum, self._count = self._sum + float(loss), self._count + 1
        self._losses = []
        metadata = {**more(), "step": step, "config": self._folder.config, RESERVED: _origin(state)}
        # A checkpoint at the end or after a signal averages fewer losses, so it cannot become the best.
        metadata["meta_loss"] = self._sum / self._count if due and math.isfinite(self._sum) else None
        if due:
            self._sum, self._count = 0.0, 0
        metadata["since"] = [self._sum, self._count]
        copy = to_host(state)
        if is_first():
            self._wait()
            self._write = self._writer.submit(self._store, copy, metadata)

    def _store(self, state: MetaState, metadata: Mapping[str, Any]) -> None:
        """Write the files of one checkpoint, in the writer's thread.

        `best.safetensors` is written first. A run that is killed between the two files then resumes from the previous
        checkpoint and reaches this one again, so the best is never lost.
        """
        meta_loss = metadata["meta_loss"]
        if meta_loss is not None and meta_loss < self._best:
            save_arrays(self._folder.best, state, metadata=metadata)
            self._best = meta_loss
        save_arrays(self._folder.checkpoint(metadata["step"]), state, metadata=metadata)
        for path in self._folder.checkpoints[: -self._settings.keep]:
            path.unlink()

    def _wait(self) -> None:
        """Wait for the writer, and raise its error if it failed."""
        write, self._write = self._write, None
        if write is not None:
            write.result()


def _origin(state: MetaState) -> dict[str, Any]:
    """The description of the learner for `weights.load`, or the reason why there is none."""
    try:
        return origin(state.learner, prefix="learner/")[0]
    except ValueError as error:
        return {"version": version(), "refused": str(error)}


def newest_intact(folder: RunFolder, like: MetaState) -> tuple[MetaState, dict[str, Any]] | None:
    """The newest usable checkpoint and its metadata. Newer ones, all unusable, are renamed with a warning.

    Raises `CheckpointError` if there are checkpoints but none is usable, and leaves them untouched.
    """
    refused: list[tuple[Path, CheckpointError]] = []
    for path in reversed(folder.checkpoints):
        try:
            state, metadata = _load(path, folder, like)
        except CheckpointError as error:
            refused.append((path, error))
            continue
        for other, error in refused:
            _set_aside(other, f"{error} The run continues from `{path.name}`.")
        return state, metadata
    if refused:
        reasons = " ".join(str(error) for _, error in refused)
        raise CheckpointError(
            f"`{folder.path}` has no usable checkpoint. {reasons} Nothing was changed. Restore an intact "
            "`checkpoint-*.safetensors`, or delete these files to start the run over."
        )
    return None


def best_loss(folder: RunFolder, like: MetaState) -> float:
    """The meta-loss of `best.safetensors`; infinity if there is none."""
    try:
        return _load(folder.best, folder, like)[1]["meta_loss"]
    except FileNotFoundError:
        return math.inf
    except CheckpointError as error:
        _set_aside(folder.best, f"{error} The next checkpoint becomes the best.")
        return math.inf


def _load(path: Path, folder: RunFolder, like: MetaState) -> tuple[MetaState, dict[str, Any]]:
    state, metadata = load_arrays(path, like)
    if metadata.get("config") != folder.config:
        raise CheckpointError(f"`{path}` belongs to a run with another configuration.")
    if metadata.get("step") != int(state.step):
        raise CheckpointError(f"`{path}` is not a checkpoint of meta-training.")
    return state, metadata


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.corrupt")
    os.replace(path, aside)
    warnings.warn(f"{reason} The file was renamed to `{aside.name}`.", stacklevel=2)
