"""How much of what `residual_muon` learned to keep: losses on larger tasks, of neither meta-training nor the suite.

    python examples/residual_muon_validation.py --data FOLDER --run pretraining/residual_muon
    python examples/residual_muon_validation.py --data FOLDER --run pretraining/residual_muon --compare-rates
    python examples/residual_muon_validation.py --smoke    # a tiny version

FOLDER has `cifar10`, and the run is a folder of `residual_muon.py`. The meta-parameters are theta_0 + kept (theta -
theta_0), where theta_0 are the initial ones, with which the optimizer is its control `rms_muon`. Prints the loss after
training over that of the control, means over seeds, and their geometric mean over tasks. Saves the table and a figure.
With `--compare-rates`, half is kept, and the table has the losses for several peaks of the learning rate, after 500 and
after 4,000 steps.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from residual_muon import BASE, RATE, images, kept_part, losses, mlp

import lo_components as loc


def tasks(folder: Path | None) -> dict:
    """By name: a task and its number of steps."""
    large, small = (images("cifar10", folder, pixels) for pixels in (32, 16))
    text = loc.data.python_docs(length=33)
    language = dict(width=64, depth=2, heads=4, positions=True, batch_size=16)
    return {
        "32x32, MLP 128-128": (mlp(large, 128, 2, batch_size=128), 500),
        "16x16, MLP 64-64-64": (mlp(small, 64, 3, batch_size=128), 500),
        "16x16, CNN": (loc.tasks.cnn_classification(small, width=16, depth=2, batch_size=64, **BASE), 500),
        "transformer of width 64": (loc.tasks.language_modeling(text, **language, **BASE), 1000),
    }


def final(curves: np.ndarray) -> np.ndarray:
    """The mean loss of the last 50 steps, for each seed."""
    return curves[:, -50:].mean(1)


def kept(start, trained, found: dict[str, tuple[Any, int]], seeds: int, figure: Path) -> Iterator[list]:
    """A row for each fraction that is kept: losses over those of the control. Also a figure."""
    yield ["kept", *found, "mean"]
    control = loc.recipes.rms_muon(RATE)
    panels = {name: {"rms_muon": losses(control, task, steps, seeds)} for name, (task, steps) in found.items()}
    for part in (0.5, 0.7, 0.85, 1.0):
        learner, label = kept_part(start, trained, part), f"{part:g} kept"
        for name, (task, steps) in found.items():
            panels[name][label] = losses(learner, task, steps, seeds)
        ratios = [float(np.mean(final(x[label]) / final(x["rms_muon"]))) for x in panels.values()]
        yield [part, *ratios, float(np.exp(np.mean(np.log(ratios))))]
    loc.plots.training_curves(panels, figure, title="Tasks of validation")


def rates(learner, found: dict[str, tuple[Any, int]], seeds: int, horizons: tuple[int, ...]) -> Iterator[list]:
    """A row for each horizon and peak of the learning rate: losses."""
    yield ["steps", "peak", *found]
    for steps in horizons:
        for peak in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3):
            changed = eqx.tree_at(lambda x: x.schedule, learner, loc.schedules.WarmUpAndDecay(peak))
            yield [steps, peak, *(final(losses(changed, task, steps, seeds)).mean() for task, _ in found.values())]


def main(data: Path | None, run: Path, seed: int, out: Path, seeds: int, compare_rates: bool, smoke: bool) -> None:
    found, horizons = tasks(data), (500, 4000)
    if smoke:
        found, seeds, horizons = {"16x16, CNN": (found["16x16, CNN"][0], 2)}, 1, (2,)
        trained = loc.pretrained("residual_muon")
    else:
        trained = loc.weights.load(max(run.glob("checkpoint-*.safetensors")))
    start = loc.recipes.residual_muon(RATE, key=jax.random.split(jax.random.key(seed))[0])
    start = eqx.tree_at(lambda x: x.schedule, start, trained.schedule)
    out.parent.mkdir(parents=True, exist_ok=True)
    if compare_rates:
        rows = rates(kept_part(start, trained, 0.5), found, seeds, horizons)
    else:
        rows = kept(start, trained, found, seeds, out.with_suffix(".svg"))
    with out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in rows:
            cells = [x if isinstance(x, str) else format(x, ".4g") for x in row]
            table.writerow(cells)
            print("".join(f"{cell:>26}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with `cifar10` (default: digits)")
    parser.add_argument("--run", type=Path, default=Path("pretraining/residual_muon"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--out", type=Path, default=Path("residual_muon_validation.csv"), help="file of the table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--compare-rates", action="store_true", help="compare learning rates instead")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
