"""Meta-train the pretrained optimizer `residual_muon`: Muon with a learned correction and learned factors.

    python examples/residual_muon.py --data FOLDER   # as it is shipped, half an hour on one CPU core
    python examples/residual_muon.py --smoke         # a tiny version

FOLDER has `fashion_mnist` (four idx files) and `cifar10` (`cifar-10-batches-py`); without it, digits stand in for both.
Writes `residual_muon.safetensors` and its card to the folder `--out`, beside a folder with the log and a figure of the
losses on the tasks of meta-training, of the learned optimizer and of its control. If it is interrupted, run it again to
continue.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

import lo_components as loc
from lo_components.estimators import ESSingle, Mixture
from lo_components.parametrization import MuP
from lo_components.unroll import GradientStep, LogLoss, LogUniformHorizon, TruncatedUnroll

BASE = dict(parametrization=MuP(bias_std=0.0), base_width=32)
INPUTS = 64  # 8x8 pixels, the base of muP
RATE = 4e-3


def images(name: str, folder: Path | None, pixels: int = 8):
    """Gray images of `pixels` x `pixels`; without a folder, digits."""
    if folder is None:
        return loc.data.digits()
    read = {"fashion_mnist": loc.data.fashion_mnist, "cifar10": loc.data.cifar10}[name]
    train = read(folder / name).splits["train"]
    gray = np.asarray(train.images, np.float32)
    gray = loc.data.pooled(gray.mean(-1) if gray.ndim == 4 else gray, pixels)
    return loc.data.image_dataset({"train": (gray, np.asarray(train.labels))}, num_classes=10, name=name)


def teacher(size: int = 4000, seed: int = 1):
    """Noisy labels by a random network, for correlated inputs; so few that a network can learn them by heart."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((INPUTS, INPUTS)) * np.exp(-np.arange(INPUTS) / 16)
    inputs = rng.standard_normal((size, INPUTS)) @ mix.T
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    hidden = np.tanh(inputs @ rng.standard_normal((INPUTS, 48)) * 0.2)
    logits = hidden @ rng.standard_normal((48, 10)) * 1.5 + 0.5 * rng.standard_normal((size, 10))
    arrays = inputs.reshape(size, 8, 8).astype(np.float32), logits.argmax(1)
    return loc.data.image_dataset({"train": arrays}, num_classes=10, name="teacher")


def mlp(data, width: int, depth: int, batch_size: int = 64):
    return loc.tasks.mlp_classification(
        data, width=width, depth=depth, base_in_size=INPUTS, batch_size=batch_size, **BASE
    )


def tasks(folder: Path | None) -> dict:
    """The four tasks of meta-training, by name."""
    text = loc.data.python_docs(length=17)
    return {
        "Fashion-MNIST, 8x8, MLP 32-32": mlp(images("fashion_mnist", folder), 32, 2),
        "CIFAR-10, gray, 8x8, MLP 64": mlp(images("cifar10", folder), 64, 1),
        "a random teacher, MLP 48-48-48": mlp(teacher(), 48, 3),
        "bytes of Python's documentation, transformer of width 32 with one block": loc.tasks.language_modeling(
            text, width=32, depth=1, heads=2, positions=True, batch_size=8, **BASE
        ),
    }


def kept_part(start, learner, kept: float):
    """The initial learner plus a fraction of the learned change of its meta-parameters."""
    theta, constants = loc.partition(learner)
    return eqx.combine(jax.tree.map(lambda a, b: a + kept * (b - a), loc.theta(start), theta), constants)


def losses(learner, task, steps: int, seeds: int) -> np.ndarray:
    """Training losses `[seeds, steps]`."""
    with jax.numpy_dtype_promotion("standard"):
        found = loc.meta.evaluate(
            learner, task, num_steps=steps, num_seeds=seeds, seeds_at_once=1, key=jax.random.key(7)
        )
    return np.asarray(found.losses)


def meta_train(start, tasks: dict, folder: Path, args, *, key, inner_step=GradientStep()):
    """The learner after meta-training on the tasks; the log and the checkpoints are in the folder."""

    def estimator(task):
        horizon = LogUniformHorizon(args.shortest, args.horizon)
        unroll = TruncatedUnroll(task, horizon, args.window, meta_loss=LogLoss(args.final), inner_step=inner_step)
        return ESSingle(unroll, num_pairs=args.pairs, std=args.std)

    settings = {
        name: value for name, value in vars(args).items() if name not in ("data", "out", "kept", "seeds", "smoke")
    }
    return loc.meta.meta_train(
        start,
        Mixture([estimator(task) for task in tasks.values()], names=list(tasks)),
        num_steps=args.meta_steps,
        optimizer=loc.meta.meta_optimizer(args.meta_steps, peak=args.rate, end=0.0),
        checkpoints=loc.meta.Checkpoints(folder, settings),
        log_every=25,
        progress=folder.name,
        key=key,
    )


def main(args) -> None:
    found = tasks(args.data)
    init_key, key = jax.random.split(jax.random.key(args.seed))
    folder = args.out / "residual_muon"
    start = loc.recipes.residual_muon(RATE, reference_steps=args.horizon, key=init_key)
    learner = meta_train(start, found, folder, args, key=key)
    # All of what was learned suits the tasks of meta-training best, and a part of it larger ones.
    learner = kept_part(start, learner, args.kept)
    card = loc.Card(
        name="residual_muon",
        summary="Muon with a learned correction of the momentum and learned factors for each tensor",
        parametrization=BASE["parametrization"],
        base_width=BASE["base_width"],
        base_in_size=INPUTS,
        learning_rate=RATE,
        needs=("num_steps",),
        tasks="; ".join(found),
        widths=(32, 48, 64),
        horizon=f"{args.shortest} to {args.horizon} steps, log-uniform",
        estimator=f"ESSingle, {args.pairs} pairs for each task, std {args.std}, windows of {args.window} steps; "
        f"{args.kept} of the learned change is kept",
        seed=args.seed,
        command=f"python examples/residual_muon.py --data FOLDER --seed {args.seed}",
        source="Muon (Jordan et al., 2024), with a learned correction; this library",
    )
    print(loc.Pretrained(args.out).save(learner, card, runs=[folder]))
    compared = {"residual_muon": learner, "rms_muon, nothing learned": loc.recipes.rms_muon(RATE)}
    panels = {
        name: {label: losses(x, task, args.horizon, args.seeds) for label, x in compared.items()}
        for name, task in found.items()
    }
    loc.plots.training_curves(panels, args.out / "residual_muon.svg", title="On the tasks of meta-training")


def run(main: Callable, doc: str | None, *, meta_steps: int, pairs: int, shortest: int) -> None:
    """Call `main` with the options of the command line; the numbers are defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with `fashion_mnist` and `cifar10`")
    parser.add_argument("--out", type=Path, default=Path("pretraining"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--meta-steps", type=int, default=meta_steps)
    parser.add_argument("--pairs", type=int, default=pairs, help="antithetic pairs for each task")
    parser.add_argument("--shortest", type=int, default=shortest, help="the shortest horizon")
    parser.add_argument("--horizon", type=int, default=1000, help="the longest horizon")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--std", type=float, default=0.07, help="standard deviation of the noise")
    parser.add_argument("--rate", type=float, default=2e-2, help="peak meta-learning rate")
    parser.add_argument("--final", type=float, default=0.7, help="weight of the final loss in the meta-loss")
    parser.add_argument("--kept", type=float, default=0.5, help="fraction of the learned change that is kept")
    parser.add_argument("--seeds", type=int, default=3, help="runs for the figure")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(meta_steps=2, pairs=1, shortest=4, horizon=4, window=2, seeds=1)
    try:
        main(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to continue from the last checkpoint")


if __name__ == "__main__":
    run(main, __doc__, meta_steps=1200, pairs=8, shortest=200)
