"""Meta-train muLO on one width and on a mixture of three, then train networks of other widths with both.

    python examples/multi_width.py                 # digits
    python examples/multi_width.py --data FOLDER   # Fashion-MNIST's four idx files, pooled to 14x14
    python examples/multi_width.py --smoke         # a tiny version

The muLO paper calls the two optimizers muLO_S and muLO_M. Prints a table and saves a figure.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

import lo_components as loc
from lo_components.estimators import PES, Mixture
from lo_components.parametrization import MuP
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

WIDTHS, TESTED = (16, 32, 64), (32, 128, 512)


def pooled(folder: Path):
    """Fashion-MNIST averaged over 2x2 pixels."""
    dataset = loc.data.fashion_mnist(folder)

    def pool(images):
        images = np.asarray(images, np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4))
        return np.round(images).astype(np.uint8)

    splits = {name: (pool(split.images), np.asarray(split.labels)) for name, split in dataset.splits.items()}
    return loc.data.image_dataset(splits, num_classes=10, name="Fashion-MNIST, 14x14")


def make_task(dataset, width: int):
    return loc.tasks.mlp_classification(dataset, width=width, depth=2, batch_size=64, parametrization=MuP())


def main(
    data: Path | None = None,
    out: Path = Path("multi_width.png"),
    meta_steps: int = 1000,
    test_steps: int = 1000,
    smoke: bool = False,
) -> None:
    dataset = loc.data.digits() if data is None else pooled(data)
    widths, tested, num_pairs, window, horizon = WIDTHS, TESTED, 2, 50, LogUniformHorizon(100, 400)
    if smoke:
        widths, tested, meta_steps, test_steps, window, horizon = (4, 8), (4,), 3, 5, 2, LogUniformHorizon(4, 8)

    def estimator(width: int, pairs: int):
        return PES(TruncatedUnroll(make_task(dataset, width), horizon, window), num_pairs=pairs, std=0.05)

    narrow = widths[len(widths) // 2]
    estimators = {
        f"muLO_S (width {narrow})": estimator(narrow, num_pairs * len(widths)),
        "muLO_M": Mixture([estimator(w, num_pairs) for w in widths], names=[f"width {w}" for w in widths]),
    }
    learned, meta_curves = {}, {}
    for name, of in estimators.items():
        learner = loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=jax.random.key(0))
        settings = {"name": name, "meta_steps": meta_steps, "pixels": list(dataset.image_shape), "smoke": smoke}
        folder = out.with_suffix("") / name.split()[0]
        begin = time.perf_counter()
        learned[name] = loc.meta.meta_train(
            learner,
            of,
            num_steps=meta_steps,
            optimizer=loc.meta.meta_optimizer(meta_steps, peak=1e-2, end=0.0),
            checkpoints=loc.meta.Checkpoints(folder, settings),
            log_every=1,
            progress=name,
            key=jax.random.key(1),
        )
        meta_curves[name] = np.array([[row["loss"] for row in loc.meta.read_log(folder)]])
        print(f"{name}: meta-trained in {time.perf_counter() - begin:.0f} s", flush=True)

    panels = {"meta-training": meta_curves}
    print(f"\n{'width':>6}" + "".join(f"{name:>22}" for name in learned) + f"   loss after {test_steps} steps, 3 seeds")
    for width in tested:
        panel = panels.setdefault(f"width {width}", {})
        finals = []
        for name, learner in learned.items():
            curves = loc.meta.evaluate(learner, make_task(dataset, width), num_steps=test_steps, key=jax.random.key(7))
            panel[name] = np.asarray(curves.losses)
            finals.append(float(np.median(curves.final())))
        print(f"{width:>6}" + "".join(f"{x:>22.4f}" for x in finals), flush=True)
    loc.plots.training_curves(panels, out, title="muLO, meta-trained on one width and on three")
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("multi_width.png"))
    parser.add_argument("--meta-steps", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
