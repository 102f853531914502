"""Draw the figure of the first page of the documentation, for light and dark pages, from the curves of the repository.

Run: `python -m benchmarks.suite.overview`.
"""

from pathlib import Path

import numpy as np

from . import curves

FOLDER = Path(__file__).parents[2]
CURVES = curves.BASELINES.with_name("curves.npz")
HORIZON = 1000
# A label, and its colors on a light and on a dark page.
SHOWN = {
    "adamw": ("AdamW, rate tuned on each task", "#D55E00", "#F0A030"),
    "muon": ("Muon, rate tuned on each task", "#7F7F7F", "#C0C0C0"),
    "residual_muon": ("residual_muon, one rate for all tasks", "#0072B2", "#5FC4FF"),
}


def draw(path: Path, dark: bool = False) -> None:
    """Save a panel for each task: the medians of the smoothed training losses, and their range over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    found = curves.read(CURVES)
    tasks = list(dict.fromkeys(task for _, task, _ in found))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axis, task in zip(figure.subplots(2, 5).flat, tasks, strict=True):
        for name, (label, *colors) in SHOWN.items():
            color = colors[dark]
            curve = found[name, task, HORIZON].curve[:, ::5]
            steps = HORIZON * np.arange(1, curve.shape[1] + 1) / curve.shape[1]
            axis.plot(steps, np.median(curve, axis=0), color=color, label=label)
            axis.fill_between(steps, curve.min(axis=0), curve.max(axis=0), color=color, alpha=0.2, linewidth=0)
        axis.set_title(task, fontsize=10)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4.5, 7)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.25, which="both", linewidth=0.5)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("smoothed training loss", fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130, transparent=path.suffix == ".svg")


if __name__ == "__main__":
    from matplotlib.pyplot import style

    assets = FOLDER / "docs" / "assets"
    draw(assets / "suite.png")
    draw(assets / "suite-light.svg")
    with style.context("dark_background"):
        draw(assets / "suite-dark.svg", dark=True)
