"""Figures from results. Needs matplotlib (extra `[plots]`), imported when a function is called."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

# Colour-blind safe, by order of appearance.
_COLORS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7")


def training_curves(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    path: str | Path,
    *,
    title: str = "",
    horizon: int | None = None,
    floor: float = 1e-5,
) -> None:
    """Save one panel of training curves per task, side by side on one logarithmic scale.

    Lines are medians over seeds of the loss, smoothed over 20 steps; bands reach from the lowest to the highest seed. A
    non-finite loss ends a line.

    **Arguments:**

    - `panels`: by panel title, the losses `[seeds, steps]` of each optimizer by name; one colour per name.
    - `path`: the image file; its suffix chooses the format.
    - `title`: above all panels.
    - `horizon`: where to mark the end of meta-training's longest horizon, in steps.
    - `floor`: losses below it are drawn at it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Figures need matplotlib: `pip install lo-components[plots]`.") from None

    figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axis, (panel, curves) in zip(axes, panels.items(), strict=True):
        for name, losses in curves.items():
            color = _COLORS[names.index(name) % len(_COLORS)]
            smooth = np.maximum(_smoothed(np.asarray(losses, np.float64)), floor)
            steps = np.arange(smooth.shape[1])
            axis.plot(steps, np.median(smooth, axis=0), color=color, label=name, linewidth=1.8)
            axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.18, linewidth=0)
        if horizon is not None:
            axis.axvline(horizon, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel("step")
        axis.set_yscale("log")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("training loss")
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0].legend(list(handles.values()), list(handles), loc="lower left", fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def _smoothed(losses: np.ndarray, window: int = 20) -> np.ndarray:
    """The mean of the last `window` losses, of fewer at the start; NaN from a non-finite loss on."""
    total = np.cumsum(np.where(np.isfinite(losses), losses, np.nan), axis=1)
    before = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)[:, :-1]
    start = np.maximum(np.arange(losses.shape[1]) - window + 1, 0)
    counts = np.arange(losses.shape[1]) - start + 1
    return (total - before[:, start]) / counts
