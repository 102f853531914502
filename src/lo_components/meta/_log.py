import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..estimators import Estimate
from ._processes import to_host
from ._trainer import MetaMetrics, MetaState


class Log:
    """Makes the rows of the log: means over the meta-steps since the last row, and totals since the start of the run.

    A checkpoint holds the log's `metadata`, so the rows of a run that is resumed are those of an uninterrupted one.

    **Arguments:**

    - `saved`: `"log"` of the metadata of the checkpoint that the run continues from; empty for a new run.
    """

    def __init__(self, saved: Mapping[str, Any] = {}):
        self._pending: list[MetaMetrics] = []  # still on the device
        self._sums: dict[str, float] = dict(saved.get("sums", {}))
        self._count = saved.get("count", 0)
        self._inner_steps = saved.get("inner_steps", 0)
        self._row_began = saved.get("row_began", 0.0)
        self._clock_began = time.perf_counter() - saved.get("seconds", 0.0)

    def add(self, metrics: MetaMetrics) -> None:
        """Take the metrics of one meta-step, without waiting for the device."""
        self._pending.append(metrics)

    def row(self, step: int, state: MetaState) -> dict[str, int | float]:
        """The row after `step`, which ends the meta-steps that it is about."""
        seconds = self._collect()
        means = {name: total / self._count for name, total in self._sums.items()}
        row = {"step": step, **means, "inner_steps": self._inner_steps}
        if (rate := _learning_rate(state.optimizer_state)) is not None:
            row["learning_rate"] = float(to_host(rate))
        row |= {"seconds": seconds, "steps_per_second": self._count / max(seconds - self._row_began, 1e-9)}
        self._sums, self._count, self._row_began = {}, 0, seconds
        return row

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint must hold so that the next row is the same after a resume."""
        seconds = self._collect()
        totals = {"inner_steps": self._inner_steps, "seconds": seconds, "row_began": self._row_began}
        return {"log": {"sums": self._sums, "count": self._count, **totals}}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the length of a block."""
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._clock_began += time.perf_counter() - stopped

    def _collect(self) -> float:
        """Add the pending metrics to the sums, which waits for the device. Returns the seconds of training so far."""
        pending, self._pending = self._pending, []
        for metrics in to_host(pending):
            numbers = {**vars(metrics), **metrics.diagnostics}
            del numbers["diagnostics"]
            self._inner_steps += int(numbers.pop("inner_steps"))
            self._sums = {name: self._sums.get(name, 0.0) + float(value) for name, value in numbers.items()}
            self._count += 1
        return time.perf_counter() - self._clock_began


def _learning_rate(optimizer_state: optax.OptState) -> Array | None:
    """The `learning_rate` that `optax.inject_hyperparams` keeps in a state; `None` unless there is exactly one."""
    # The moments of theta may have a leaf of this name too.
    named = optax.tree.get_all_with_path(optimizer_state, "learning_rate")
    rates = [value for path, value in named if len(path) > 1 and getattr(path[-2], "name", None) == "hyperparams"]
    return rates[0] if len(rates) == 1 else None


def named_numbers(returned: Any, taken: Mapping[str, Any]) -> dict[str, float]:
    """What a callback returned, as columns of the log.

    Raises `TypeError` if it is no mapping from names to numbers, and `ValueError` if a name is `taken` or a column.
    """
    if returned is None:
        return {}
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in returned):
        raise TypeError(
            f"`callback` must return a mapping from names to numbers, or `None`, got a {type(returned).__name__}."
        )
    found = {}
    for name, value in returned.items():
        if name in Estimate.reserved or name in taken:
            raise ValueError(f"`callback` must not return `{name}`, which is another column of the log; rename it.")
        try:
            found[name] = float(np.asarray(value).reshape(()))
        except (TypeError, ValueError):
            raise TypeError(
                f"`callback` must return numbers, but `{name}` is a {type(value).__name__} of shape "
                f"{jnp.shape(value) if hasattr(value, 'shape') else '()'}; reduce it to one number."
            ) from None
    return found


def read_log(folder: str | Path) -> list[dict[str, int | float]]:
    """The rows of the log of a run. Its last line is left out if it is incomplete, as after a kill or during a write.

    **Arguments:**

    - `folder`: the folder of the run.

    Raises `ValueError` if another line is corrupt, and `FileNotFoundError` if there is no log.
    """
    path = Path(folder).expanduser() / "log.jsonl"
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"Line {number} of `{path}` is corrupt; delete that line.") from None
    return rows
