"""Figures of results. They need matplotlib (extra `[plots]`), which is imported when a function is called.

The suffix of a path sets the format. SVG files have no background, and text and axes follow the style of matplotlib: a
call inside `with plt.style.context("dark_background"):` draws for dark pages.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .meta import CoordinateCheck

# Safe for color blindness, in order of appearance. After the last color, lines are dashed, then dash-dotted.
_COLORS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


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
    """Save training curves, one panel per task, side by side on a common logarithmic scale.

    Lines show the median loss over seeds, smoothed over 20 steps; bands span all seeds. A line ends at the first loss
    that is not finite.

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
    with _figure(len(panels), path, title) as axes:
        names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
        for axis, (panel, curves) in zip(axes, panels.items(), strict=True):
            for name, losses in curves.items():
                again, i = divmod(names.index(name), len(_COLORS))
                color, style = _color(i), ("-", "--", "-.")[again % 3]
                smooth = np.maximum(_smoothed(np.asarray(losses, np.float64)), floor)
                # No more points than can be seen, for small SVG files.
                steps = np.arange(0, smooth.shape[1], max(1, smooth.shape[1] // 300))
                smooth, steps = smooth[:, steps], per_step * steps
                axis.plot(steps, np.median(smooth, axis=0), color=color, linestyle=style, label=name, linewidth=1.8)
                axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.18, linewidth=0)
            if horizon is not None:
                axis.axvline(per_step * horizon, color=_color(-1), linewidth=0.8, linestyle=":")
            axis.set_title(panel, fontsize=10)
            axis.set_xlabel(unit)
            axis.set_yscale("log")
        axes[0].set_ylabel("training loss")
        handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        # A legend of many names would cover the curves, so it goes beside them.
        few, figure = len(handles) <= 4, axes[0].figure
        if not few:
            figure.set_figwidth(figure.get_figwidth() + 1.5)
        legend = axes[0].legend if few else figure.legend
        place = "lower left" if few else "outside right center"
        legend(list(handles.values()), list(handles), loc=place, fontsize=9, frameon=False)


def _smoothed(losses: np.ndarray, window: int = 20) -> np.ndarray:
    """The mean of the last `window` losses, or of all so far; NaN from the first loss that is not finite."""
    total = np.cumsum(np.where(np.isfinite(losses), losses, np.nan), axis=1)
    before = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)[:, :-1]
    start = np.maximum(np.arange(losses.shape[1]) - window + 1, 0)
    counts = np.arange(losses.shape[1]) - start + 1
    return (total - before[:, start]) / counts


def coordinate_checks(checks: Mapping[str, CoordinateCheck], path: str | Path, *, title: str = "") -> None:
    """Save coordinate checks, one panel each: the change of each layer's pre-activations against the width.

    Under muP, lines should be flat. Both axes are logarithmic, later steps are darker, and changes of exactly zero are
    omitted.

    **Arguments:**

    - `checks`: maps the title of each panel to a result of [`lo_components.meta.coordinate_check`][].
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.

    ??? cite "Source"
        Figure 1 of muLO (arXiv 2406.00153).
    """
    with _figure(len(checks), path, title) as axes:
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
            axis.set_title(f"{panel}\nlargest exponent {check.largest():.2f}", fontsize=10)
            axis.set_xlabel("width")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
        axes[0].set_ylabel("change of pre-activations")
        if axes[0].get_legend_handles_labels()[1]:
            axes[0].legend(loc="upper left", fontsize=8, frameon=False)


def transfer(
    panels: Mapping[str, Mapping[int, np.ndarray]],
    learning_rates: np.ndarray,
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Save learning-rate sweeps, one panel per parametrization: the loss against the learning rate for each width.

    Lines show the median over seeds, bands span all seeds, and dots mark the best learning rate of each width. Losses
    that are not finite are omitted.

    **Arguments:**

    - `panels`: maps the title of each panel to the final losses `[learning rates, seeds]` of each width.
    - `learning_rates`: the learning rates, `[learning rates]`.
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.
    """
    with _figure(len(panels), path, title) as axes:
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
                    axis.plot(learning_rates[best], middle[best], "o", color=color)
            axis.set_title(panel, fontsize=10)
            axis.set_xlabel("learning rate")
            axis.set_xscale("log")
            axis.set_yscale("log")
        axes[0].set_ylabel("training loss")
        axes[0].legend(fontsize=9, frameon=False)


def bias_and_variance(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """Save the bias and the variance of meta-gradient estimators, two panels per problem.

    The left panel shows means with two standard errors, the right one standard deviations, both divided by the
    reference.

    **Arguments:**

    - `rows`: one per estimator and window, with the keys `"problem"`, `"estimator"`, `"window"`, `"mean"`, `"error"`
        (the standard error), `"reference"` (the exact meta-gradient) and `"std"`.
    - `path`: the image file; its suffix sets the format.
    - `title`: the title above all panels.

    Raises `ImportError` if matplotlib is missing.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    with _figure(2 * len(problems), path, title, same_scale=False) as axes:
        for i, problem in enumerate(problems):
            for j, name in enumerate(names):
                some = [row for row in rows if (row["problem"], row["estimator"]) == (problem, name)]
                look = dict(color=_color(j), label=name, linewidth=1.4, marker="o", markersize=4)
                # Shifted, so that points do not cover each other.
                windows = [row["window"] * 1.04 ** (j - len(names) / 2) for row in some]
                means = [row["mean"] / row["reference"] for row in some]
                errors = [2 * row["error"] / abs(row["reference"]) for row in some]
                axes[2 * i].errorbar(windows, means, errors, **look)
                axes[2 * i + 1].plot(windows, [row["std"] / abs(row["reference"]) for row in some], **look)
            axes[2 * i].axhline(1.0, color=_color(-1), linewidth=0.8, linestyle=":")
            axes[2 * i].set_title(f"{problem}\nmean over reference", fontsize=10)
            axes[2 * i + 1].set_title(f"{problem}\nstandard deviation over reference", fontsize=10)
            axes[2 * i + 1].set_yscale("log")
        for axis in axes:
            axis.set_xlabel("truncation window")
            axis.set_xscale("log")
        axes[0].legend(fontsize=8, frameon=False)


def _color(i: int) -> Any:
    """The i-th color; the last one, black, is the color of text in matplotlib's style."""
    import matplotlib

    i %= len(_COLORS)
    return matplotlib.rcParams["text.color"] if i == len(_COLORS) - 1 else _COLORS[i]


@contextmanager
def _figure(num_panels: int, path: str | Path, title: str, same_scale: bool = True) -> Iterator[Sequence[Any]]:
    """Axes side by side, with one vertical scale if `same_scale`; the figure is saved at the end of the block."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Figures need matplotlib; install it with `pip install lo-components[plots]`.") from None
    figure = Figure(figsize=(3.4 * num_panels, 3.6), layout="constrained")
    axes = figure.subplots(1, num_panels, sharey=same_scale, squeeze=False)[0]
    yield axes
    for axis in axes:
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    path = Path(path).expanduser()
    figure.savefig(path, dpi=150, transparent=path.suffix == ".svg")
