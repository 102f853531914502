"""How much of what `residual_muon` learned to keep: losses on larger tasks, of neither meta-training nor the suite.

    python examples/residual_muon_validation.py --data FOLDER --run pretraining/residual_muon
    python examples/residual_muon_validation.py --smoke    # a tiny version

FOLDER has `cifar10`, and the run is a folder of `residual_muon.py`. The meta-parameters are theta_0 + kept (theta -
theta_0), where theta_0 are the initial ones, with which the optimizer is its control `rms_muon`. Prints the loss after
training over that of the control, means over seeds, and their geometric mean over tasks.
"""

import argparse
import csv
import sys
from pathlib import Path

import jax
import numpy as np
from residual_muon import BASE, RATE, images, kept_part, mlp

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


def final(learner, task, steps: int, seeds: int) -> np.ndarray:
    """The mean loss of the last 50 steps, for each seed."""
    with jax.numpy_dtype_promotion("standard"):
        found = loc.meta.evaluate(
            learner, task, num_steps=steps, num_seeds=seeds, seeds_at_once=1, key=jax.random.key(7)
        )
    return np.asarray(found.losses)[:, -50:].mean(1)


def main(data: Path | None, run: Path, seed: int, out: Path, seeds: int, smoke: bool) -> None:
    start = loc.recipes.residual_muon(RATE, key=jax.random.split(jax.random.key(seed))[0])
    found = tasks(data)
    if smoke:
        found, seeds, trained = {"16x16, CNN": (found["16x16, CNN"][0], 2)}, 1, start
    else:
        trained = loc.weights.load(max(run.glob("checkpoint-*.safetensors")))
    control = {name: final(loc.recipes.rms_muon(RATE), *task, seeds) for name, task in found.items()}
    print(f"{'kept':<8}" + "".join(f"{name:>26}" for name in found) + f"{'mean':>8}")
    rows = [["kept", *found, "mean"]]
    for kept in (0.5, 0.7, 0.85, 1.0):
        learner = kept_part(start, trained, kept)
        ratios = [float(np.mean(final(learner, *task, seeds) / control[name])) for name, task in found.items()]
        mean = float(np.exp(np.mean(np.log(ratios))))
        print(f"{kept:<8g}" + "".join(f"{x:>26.3f}" for x in ratios) + f"{mean:>8.3f}", flush=True)
        rows.append([kept, *(f"{x:.4f}" for x in (*ratios, mean))])
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with `cifar10` (default: digits)")
    parser.add_argument("--run", type=Path, default=Path("pretraining/residual_muon"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--out", type=Path, default=Path("residual_muon_validation.csv"), help="file of the table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
