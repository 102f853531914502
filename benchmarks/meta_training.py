"""How much the settings of meta-training matter: one at a time, around a small muLO, each with several seeds.

    python benchmarks/meta_training.py --data FOLDER      # hours on one core; if interrupted, run it again to continue

FOLDER has `fashion_mnist`. small_fc_lopt (a head of 4 x 2 units) is meta-trained with PES on an MLP of width 32 on 8x8
pixels under muP, with horizons from 100 to 1,000 steps. Each learner then trains that MLP and one of width 256, over
1,000 steps and three seeds. Prints the loss (the mean of the last 20 steps, and over seeds of training) of each seed of
meta-training, and writes `benchmarks/results/meta_training.json`.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np
from report import RESULTS, write

import lo_components as loc
from lo_components.estimators import PES
from lo_components.meta import Checkpoints, meta_optimizer, meta_train
from lo_components.parametrization import MuP
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

RESULT = RESULTS / "meta_training.json"
WIDTH, WIDE, STEPS = 32, 256, 1000


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one meta-training."""

    std: float = 0.05
    rate: float = 1e-2
    pairs: int = 4
    window: int = 50
    meta_steps: int = 1500


# What differs from the defaults.
CHANGES = [
    {},
    {"std": 0.01},
    {"std": 0.1},
    {"std": 0.2},
    {"rate": 1e-3},
    {"rate": 3e-3},
    {"rate": 3e-2},
    {"pairs": 1},
    {"pairs": 16},
    {"window": 20},
    {"window": 100},
    {"meta_steps": 500},
    {"meta_steps": 5000},
]


def task(dataset, width: int):
    return loc.tasks.mlp_classification(dataset, width=width, depth=2, parametrization=MuP(), batch_size=128)


def trained(dataset, settings: Settings, seed: int, folder: Path):
    """The learner of one meta-training; an interrupted one is continued."""
    init_key, key = jax.random.split(jax.random.key(seed))
    unroll = TruncatedUnroll(task(dataset, WIDTH), LogUniformHorizon(STEPS // 10, STEPS), settings.window)
    return meta_train(
        loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=init_key),
        PES(unroll, num_pairs=settings.pairs, std=settings.std),
        num_steps=settings.meta_steps,
        optimizer=meta_optimizer(settings.meta_steps, peak=settings.rate, end=0.0),
        checkpoints=Checkpoints(folder, {"seed": seed, **dataclasses.asdict(settings)}),
        log_every=100,
        key=key,
    )


def main(data: Path, out: Path, runs: Path, seeds: int) -> None:
    splits = loc.data.fashion_mnist(data / "fashion_mnist").splits
    small = {name: (loc.data.pooled(x.images, 8), np.asarray(x.labels)) for name, x in splits.items()}
    dataset, rows = loc.data.image_dataset(small, num_classes=10, name="Fashion-MNIST, 8x8"), []
    for change in CHANGES:
        losses: dict[int, list[float]] = {WIDTH: [], WIDE: []}
        for seed in range(seeds):
            name = "-".join(["run", *(f"{k}-{v:g}" for k, v in change.items()), str(seed)])
            learner = trained(dataset, Settings(**change), seed, runs / name)
            for width, found in losses.items():
                options = dict(num_steps=STEPS, num_seeds=3, key=jax.random.key(100))
                curves = np.asarray(loc.meta.evaluate(learner, task(dataset, width), **options).losses)
                found.append(round(float(curves[:, -20:].mean()), 4))
        rows.append({"change": change, **{f"width {width}": found for width, found in losses.items()}})
        print(rows[-1], flush=True)
        write(out, rows, settings=dataclasses.asdict(Settings()), steps=STEPS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--runs", type=Path, default=Path("meta-training"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))
