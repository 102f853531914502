"""Figures of results. They need matplotlib (extra `[plots]`), which is imported when a function is called.

The suffix of a path sets the format. Panels are in rows of two, so that phones can show them. SVG files have no
background, and text and axes follow the style of matplotlib: a call inside `with plt.style.context("dark_background"):`
draws for dark pages.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .meta import CoordinateCheck

# Safe for color blindness, in order of appearance. After the last color, lines are dashed, then dash-dotted.
_COLORS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_TITLE = 30  # characters of a line of a panel's title


def training_curves(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    path: str | Path,
    *,
    title: str = "",
    horizon: int | None = None,
    floor: float = 1e-5,
    unit: str = "step",
    per_step: float = 1.0,
) -> None:
    """Save training curves, one panel per task, on a common logarithmic scale.

    Lines show the median loss over seeds, smoothed over a twentieth of the steps (at most 20); bands span all seeds. A
    line ends at the first loss that is not finite.

    **Arguments:**

    - `panels`: maps the title of each panel to the losses `[seeds, steps]` of each optimizer by name.
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.
    - `horizon`: the longest horizon of meta-training in steps, marked by a vertical line.
    - `floor`: smaller losses are shown as this value.
    - `unit`: the label of the horizontal axis, for instance `"round"`.
    - `per_step`: how many units a step counts, for instance the bytes that it sends.

    Raises `ImportError` if matplotlib is missing.
    """
    with _figure(len(panels), path, title, unit, "training loss") as axes:
        names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
        for axis, (panel, curves) in zip(axes, panels.items(), strict=True):
            for name, losses in curves.items():
                again, i = divmod(names.index(name), len(_COLORS))
                color, style = _color(i), ("-", "--", "-.")[again % 3]
                smooth = np.maximum(_smoothed(np.asarray(losses, np.float64)), floor)
                # No more points than can be seen, for small SVG files.
                steps = np.arange(0, smooth.shape[1], max(1, smooth.shape[1] // 100))
                smooth, steps = smooth[:, steps], per_step * steps
                axis.plot(steps, np.median(smooth, axis=0), color=color, linestyle=style, label=name, linewidth=1.8)
                if len(smooth) > 1:
                    low, high = smooth.min(axis=0), smooth.max(axis=0)
                    axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
            if horizon is not None:
                axis.axvline(per_step * horizon, color=_color(-1), linewidth=0.8, linestyle=":")
            axis.set_title(_wrapped(panel))
            axis.set_yscale("log")


def _wrapped(title: str) -> str:
    """In short lines, unless it has formulas."""
    return title if "$" in title else "\n".join(textwrap.fill(line, _TITLE) for line in title.split("\n"))


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """A running mean over a twentieth of all steps, at most 20; NaN from the first loss that is not finite."""
    window = min(20, 1 + losses.shape[1] // 20)
    total = np.cumsum(np.where(np.isfinite(losses), losses, np.nan), axis=1)
    before = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)[:, :-1]
    start = np.maximum(np.arange(losses.shape[1]) - window + 1, 0)
    counts = np.arange(losses.shape[1]) - start + 1
    return (total - before[:, start]) / counts


def coordinate_checks(checks: Mapping[str, CoordinateCheck], path: str | Path, *, title: str = "") -> None:
    """Save coordinate checks, one panel each: the change of each layer's pre-activations against the width.

    Under muP, lines should be flat. Both axes are logarithmic, earlier steps are fainter, and changes of exactly zero
    are omitted.

    **Arguments:**

    - `checks`: maps the title of each panel to a result of [`lo_components.meta.coordinate_check`][].
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.

    ??? cite "Source"
        Figure 1 of muLO (arXiv 2406.00153).
    """
    with _figure(len(checks), path, title, "width", "change of pre-activations") as axes:
        for axis, (panel, check) in zip(axes, checks.items(), strict=True):
            means = np.mean(check.changes, axis=1)
            num_steps = means.shape[1]
            for step in range(num_steps):
                for i in range(len(check.layers)):
                    if (means[:, step, i] > 0).all():
                        alpha = 0.25 + 0.75 * (step + 1) / num_steps
                        axis.plot(check.widths, means[:, step, i], color=_color(i), alpha=alpha, linewidth=1.4)
            if len(check.layers) <= len(_COLORS):
                for i, layer in enumerate(check.layers):
                    axis.plot([], [], color=_color(i), label=layer)
            axis.set_title(f"{panel}\nlargest exponent {check.largest():.2f}")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")


def transfer(
    panels: Mapping[str, Mapping[int, np.ndarray]],
    learning_rates: np.ndarray,
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Save learning-rate sweeps, one panel per parametrization: the loss against the learning rate for each width.

    Lines show the median over seeds, bands span all seeds, and dots mark the best learning rate of each width. Losses
    that are not finite are omitted, and the axis ends at ten times the lowest median.

    **Arguments:**

    - `panels`: maps the title of each panel to the final losses `[learning rates, seeds]` of each width.
    - `learning_rates`: the learning rates, `[learning rates]`.
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.
    """
    with _figure(len(panels), path, title, "learning rate", "training loss") as axes:
        lowest = np.inf
        for axis, (panel, losses) in zip(axes, panels.items(), strict=True):
            for i, (width, values) in enumerate(losses.items()):
                color = _color(i)
                values = np.where(np.isfinite(values), values, np.nan)
                middle = np.median(values, axis=1)
                axis.plot(learning_rates, middle, color=color, label=f"width {width}", linewidth=1.6)
                axis.fill_between(
                    learning_rates, values.min(axis=1), values.max(axis=1), color=color, alpha=0.18, linewidth=0
                )
                if np.isfinite(middle).any():
                    best = int(np.nanargmin(middle))
                    lowest = min(lowest, middle[best])
                    axis.plot(learning_rates[best], middle[best], "o", color=color)
            axis.set_title(_wrapped(panel))
            axis.set_xscale("log")
            axis.set_yscale("log")
        if np.isfinite(lowest):
            axes[0].set_ylim(0.8 * lowest, 10 * lowest)  # of all panels


def bias_and_variance(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """Save the bias and the variance of meta-gradient estimators, a row of two panels per problem.

    The left panel shows means with two standard errors, the right one standard deviations, both divided by the
    reference. Standard deviations below 1e-6, which are rounding errors, are omitted.

    **Arguments:**

    - `rows`: one per estimator and window, with the keys `"problem"`, `"estimator"`, `"window"`, `"mean"`, `"error"`
        (the standard error), `"reference"` (the exact meta-gradient) and `"std"`.
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    with _figure(2 * len(problems), path, title, "truncation window", same_scale=False) as axes:
        for i, problem in enumerate(problems):
            for j, name in enumerate(names):
                some = [row for row in rows if (row["problem"], row["estimator"]) == (problem, name)]
                look = dict(color=_color(j), label=name, linewidth=1.4, marker="o", markersize=4)
                # Shifted, so that points do not cover each other.
                windows = [row["window"] * 1.04 ** (j - len(names) / 2) for row in some]
                means = [row["mean"] / row["reference"] for row in some]
                errors = [2 * row["error"] / abs(row["reference"]) for row in some]
                axes[2 * i].errorbar(windows, means, errors, **look)
                stds = np.array([row["std"] / abs(row["reference"]) for row in some])
                axes[2 * i + 1].plot(windows, np.where(stds > 1e-6, stds, np.nan), **look)
            axes[2 * i].axhline(1.0, color=_color(-1), linewidth=0.8, linestyle=":")
            axes[2 * i].set_title(f"{problem}\nmean / reference")
            axes[2 * i + 1].set_title(f"{problem}\nstd. dev. / reference")
            axes[2 * i + 1].set_yscale("log")
        for axis in axes:
            axis.set_xscale("log")


def _color(i: int) -> Any:
    """The i-th color, lighter on a dark background; the last one, black, is the color of text in matplotlib's style."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb

    i, text = i % len(_COLORS), to_rgb(rcParams["text.color"])
    return text if i == len(_COLORS) - 1 else tuple(x + 0.3 * (1 - x) * np.mean(text) for x in to_rgb(_COLORS[i]))


@contextmanager
def _figure(
    num_panels: int, path: str | Path, title: str, x_label: str, y_label: str = "", same_scale: bool = True
) -> Iterator[Sequence[Any]]:
    """Axes in rows of two, with one vertical scale if `same_scale`; the figure is saved at the end of the block."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        raise ImportError("Figures need matplotlib; install it with `pip install lo-components[plots]`.") from None
    with rc_context({"axes.titlesize": 10, "xtick.labelsize": 8, "ytick.labelsize": 8}):
        width, rows = (5.2 if num_panels > 1 else 4.0), -(-num_panels // 2)
        figure = Figure(figsize=(width, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, min(num_panels, 2), sharey=same_scale, squeeze=False).ravel().tolist()
        axes = grid[:num_panels]
        for axis in grid[num_panels:]:
            axis.remove()
        yield axes
    for axis in axes:
        axis.grid(color="gray", alpha=0.2)
        low, high = axis.get_ylim()
        if axis.get_yscale() == "log" and high < 100 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 30 * low else (1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
    lines = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(72 * width / (32 + 5 * max(map(len, lines), default=0))))  # as many as fit
    look = dict(ncols=columns, fontsize=9, frameon=False, handlelength=1.5, columnspacing=1.2)
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", **look)
    figure.set_figheight(2.5 * rows + 0.2 * -(-len(lines) // columns) + 0.3 * bool(title))
    figure.suptitle(title, fontsize=11)
    for axis in axes[-2:]:  # the lowest of each column
        axis.set_xlabel(x_label)
    figure.supylabel(y_label, fontsize=10)
    path = Path(path).expanduser()
    figure.savefig(path, dpi=150, transparent=path.suffix == ".svg")
