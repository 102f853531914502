"""Tables, JSON and a figure of the results."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import scores
from .curves import Curves, Key
from .optimizers import BASELINES, REFERENCE

COLORS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TAUS = np.geomspace(1.0, 8.0, 200)
COLUMNS = {
    "speedup": "speed-up",
    "speedup_adamw": "speed-up over AdamW",
    "ratio": "final loss / AdamW's",
    "area": "log loss - AdamW's, mean over steps",
    "diverged": "diverged",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of optimizers and baselines, all on the same tasks.

    **Arguments:**

    - `curves`: by optimizer, task and number of steps; those of all baselines are among them.
    """

    curves: Mapping[Key, Curves]

    @property
    def optimizers(self) -> list[str]:
        """The names, baselines first."""
        names = dict.fromkeys(name for name, _, _ in self.curves)
        return sorted(names, key=lambda name: name not in BASELINES)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for _, task, _ in self.curves))

    @property
    def horizons(self) -> list[int]:
        return sorted({horizon for _, _, horizon in self.curves})

    def target(self, task: str, horizon: int) -> float:
        """The lowest mean loss of a baseline after half of the steps."""
        return min(scores.half_way(self.curves[name, task, horizon].curve) for name in BASELINES)

    def scores(self, name: str, horizon: int) -> dict[str, dict[str, np.ndarray]]:
        """The scores of each seed by task and kind."""
        found = {}
        for task in self.tasks:
            own, reference = self.curves[name, task, horizon], self.curves[REFERENCE, task, horizon]
            found[task] = scores.of_task(own.curve, own.before, reference.curve, self.target(task, horizon))
        return found

    def summary(self, name: str, horizon: int) -> dict[str, tuple[float, float, float]]:
        """The interquartile mean over tasks and seeds of each kind of score, with its interval."""
        by_task = list(self.scores(name, horizon).values())
        found = {
            kind: scores.interval([of_task[kind] for of_task in by_task]) for kind in COLUMNS if kind != "diverged"
        }
        share = float(np.mean(np.concatenate([of_task["diverged"] for of_task in by_task])))
        return {**found, "diverged": (share, math.nan, math.nan)}

    def compared(self, name: str, other: str, horizon: int) -> dict[str, tuple[float, float, float]]:
        """One optimizer over another, seed by seed: interquartile means over tasks and seeds, with their intervals."""
        by_task = [
            scores.compared(
                self.curves[name, task, horizon].curve,
                self.curves[other, task, horizon].curve,
                self.target(task, horizon),
            )
            for task in self.tasks
        ]
        return {kind: scores.interval([of_task[kind] for of_task in by_task]) for kind in by_task[0]}

    def times(self, horizon: int) -> dict[str, list[float]]:
        """The fraction of the steps to the target, of each optimizer's mean curve, on all tasks."""
        return {
            name: [
                float(
                    scores.fraction_to(
                        np.mean(self.curves[name, task, horizon].curve, axis=0, keepdims=True),
                        self.target(task, horizon),
                    )[0]
                )
                for task in self.tasks
            ]
            for name in self.optimizers
        }

    def tables(self, over: str | None = None) -> Iterator[str]:
        """Markdown: for each number of steps the summary, then the tasks one by one."""
        for horizon in self.horizons:
            yield f"\n## {horizon:,} steps\n"
            yield from self._summary_table(horizon)
            if over is not None:
                yield from self._comparison_table(over, horizon)
            for title, cell in (
                ("Smoothed training loss at the end (learning rate)", self._final_cell),
                ("Held-out loss at the end", self._held_out_cell),
                ("Speed-up to the best baseline's loss at half of the steps", self._speedup_cell),
            ):
                yield f"\n{title}:\n"
                yield f"| task | {' | '.join(self.optimizers)} |"
                yield f"| --- |{' --- |' * len(self.optimizers)}"
                for task in self.tasks:
                    yield f"| {task} | {' | '.join(cell(name, task, horizon) for name in self.optimizers)} |"

    def _summary_table(self, horizon: int) -> Iterator[str]:
        yield f"| optimizer | {' | '.join(COLUMNS.values())} | profile |"
        yield f"| --- |{' --- |' * (len(COLUMNS) + 1)}"
        profiles = scores.profile(self.times(horizon), TAUS)
        for name in self.optimizers:
            found = self.summary(name, horizon)
            cells = [
                f"{100 * found[kind][0]:.0f} %" if kind == "diverged" else _with_interval(found[kind])
                for kind in COLUMNS
            ]
            yield f"| {name} | {' | '.join(cells)} | {scores.profile_score(profiles[name], TAUS):.2f} |"

    def _comparison_table(self, over: str, horizon: int) -> Iterator[str]:
        yield f"\nSeed by seed over {over}:\n"
        yield "| optimizer | steps to the target | steps to its final loss | final loss |\n| --- | --- | --- | --- |"
        for name in self.optimizers:
            if name != over:
                cells = map(_with_interval, self.compared(name, over, horizon).values())
                yield f"| {name} | {' | '.join(cells)} |"

    def _final_cell(self, name: str, task: str, horizon: int) -> str:
        found = self.curves[name, task, horizon]
        return f"{scores.final(found.curve):.4g} ({found.rate:g})"

    def _held_out_cell(self, name: str, task: str, horizon: int) -> str:
        return f"{np.mean(self.curves[name, task, horizon].held_out[:, -1]):.4g}"

    def _speedup_cell(self, name: str, task: str, horizon: int) -> str:
        return f"{np.mean(self.scores(name, horizon)[task]['speedup']):.2f}"

    def as_json(self, over: str | None = None) -> dict[str, Any]:
        """All scores, by number of steps and optimizer."""
        found: dict[str, Any] = {}
        for horizon in self.horizons:
            profiles = scores.profile(self.times(horizon), TAUS)
            for name in self.optimizers:
                entry: dict[str, Any] = {
                    "summary": self.summary(name, horizon),
                    "profile": scores.profile_score(profiles[name], TAUS),
                    "tasks": {
                        task: {
                            **of_task,
                            "rate": self.curves[name, task, horizon].rate,
                            "loss": self.curves[name, task, horizon].curve[:, -1],
                            "held_out": self.curves[name, task, horizon].held_out[:, -1],
                        }
                        for task, of_task in self.scores(name, horizon).items()
                    },
                }
                if over not in (None, name):
                    entry["over"] = {over: self.compared(name, over, horizon)}
                found.setdefault(str(horizon), {})[name] = entry
        return _plain(found)

    def figure(self, path: Path) -> None:
        """Save all curves, a row of panels for every five tasks of each number of steps, and the performance profiles.

        Raises `ImportError` if matplotlib is missing.
        """
        from matplotlib.figure import Figure

        columns = min(5, len(self.tasks))
        rows = -(-len(self.tasks) // columns)
        figure = Figure(figsize=(3.1 * (columns + 1), 2.6 * rows * len(self.horizons)), layout="constrained")
        axes = figure.subplots(rows * len(self.horizons), columns + 1, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, horizon in enumerate(self.horizons):
            for j, task in enumerate(self.tasks):
                axis = axes[i * rows + j // columns, j % columns]
                axis.set_axis_on()
                self._draw_curves(axis, task, horizon)
            axis = axes[i * rows, columns]
            axis.set_axis_on()
            for name, shares in scores.profile(self.times(horizon), TAUS).items():
                axis.plot(TAUS, shares, color=self._color(name), label=name)
            axis.set_xscale("log", base=2)
            axis.set_title(f"performance profile, {horizon:,} steps", fontsize=9)
            axis.set_xlabel("time to the target / the fastest one's", fontsize=8)
            axis.set_ylabel("share of tasks", fontsize=8)
            axis.legend(fontsize=8)
        figure.savefig(path, dpi=110)

    def _draw_curves(self, axis: Any, task: str, horizon: int) -> None:
        for name in self.optimizers:
            curve = self.curves[name, task, horizon].curve
            steps = horizon * np.arange(1, curve.shape[1] + 1) / curve.shape[1]
            axis.plot(steps, np.median(curve, axis=0), color=self._color(name), linewidth=1.2)
            axis.fill_between(
                steps, curve.min(axis=0), curve.max(axis=0), color=self._color(name), alpha=0.2, linewidth=0
            )
        ends = [self.curves[name, task, horizon].before.mean() for name in self.optimizers]
        lows = [scores.final(self.curves[name, task, horizon].curve) for name in self.optimizers]
        axis.set_ylim(0.9 * min(lows), 1.1 * max(ends))
        axis.axhline(self.target(task, horizon), color="black", linewidth=0.6, linestyle=":")
        axis.set_yscale("log")
        axis.set_title(f"{task}, {horizon:,} steps", fontsize=9)

    def _color(self, name: str) -> str:
        return COLORS[self.optimizers.index(name) % len(COLORS)]

    def write(self, folder: Path, over: str | None = None) -> None:
        """Write `table.md`, `scores.json` and, if there is matplotlib, `figure.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text("\n".join(self.tables(over)).lstrip() + "\n")
        (folder / "scores.json").write_text(json.dumps(self.as_json(over), indent=1, allow_nan=False) + "\n")
        try:
            self.figure(folder / "figure.png")
        except ImportError:
            print("There is no figure, since matplotlib is missing.")


def _with_interval(found: tuple[float, float, float]) -> str:
    point, low, high = found
    return f"{point:.3g}" if math.isnan(low) else f"{point:.3g} [{low:.3g}, {high:.3g}]"


def _plain(tree: Any) -> Any:
    """As JSON; numbers that are not finite become strings."""
    match tree:
        case dict():
            return {key: _plain(value) for key, value in tree.items()}
        case list() | tuple():
            return [_plain(value) for value in tree]
        case np.ndarray():
            return _plain(tree.tolist())
        case float() if not math.isfinite(tree):
            return str(tree)
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree
