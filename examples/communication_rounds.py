"""Count the rounds to a loss that LAgg-A and LOpt-A take on a small network, against tuned baselines.

    python examples/communication_rounds.py --data FOLDER     # Fashion-MNIST's four idx files, pooled to 8x8
    python examples/communication_rounds.py                   # digits
    python examples/communication_rounds.py --panels all      # also K, H, widths and models not seen in meta-training
    python examples/communication_rounds.py --meta-train      # meta-train the aggregators first
    python examples/communication_rounds.py --smoke           # a tiny version

A small version of the LAgg-A paper's experiment (arXiv 2312.02204): K = 8 workers with H = 4 local steps. Each baseline
is tuned on a grid in one compiled call, by the mean loss over the last 20 rounds of one seed. The aggregators are those
of `loc.pretrained`, meta-trained on Fashion-MNIST, unless `--meta-train` is given. Meta-training continues from the
checkpoints in the folder of the figure, if there are any, and leaves the aggregators and their cards there.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lo_components as loc
from lo_components.aggregators import Mean, OuterOptimizer, SlowMo
from lo_components.parametrization import SP, MuP
from lo_components.unroll import GradientStep, LocalRound, LogUniformHorizon, TruncatedUnroll

WORKERS, LOCAL_STEPS, LOCAL_BATCH, LOCAL_RATE = 8, 4, 128, 0.5
WIDTH, PIXELS = 32, 64  # of the network on which aggregators are meta-trained
STAGES = ((1500, 0.1, 1e-2), (300, 0.02, 3e-3))  # meta-steps, standard deviation of the noise, peak meta-learning rate
LOCAL_RATES = (1.0, 0.5, 0.3, 0.1)
RATES = tuple(m * 10.0**e for e in (-1, -2, -3, -4, -5) for m in (5, 1)) + (1.0,)
MOMENTA = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
# By name: a fine grid, a coarse grid, and a function from a configuration to a learner and an inner step. A step of SGD
# and Adam takes as many samples as a round of the others.
BASELINES = {
    "local SGD": ((LOCAL_RATES,), (LOCAL_RATES,), lambda spread, gamma: (Mean(), spread(gamma))),
    "SlowMo": (
        (LOCAL_RATES, MOMENTA, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)),
        (LOCAL_RATES, (0.65, 0.8, 0.9), (0.75, 1.0, 1.25)),
        lambda spread, gamma, beta, alpha: (SlowMo(beta, alpha), spread(gamma)),
    ),
    "outer Nesterov": (
        (LOCAL_RATES, (0.3, 0.5, 0.7, 1.0), (0.5, 0.7, 0.8, 0.9, 0.95)),
        (LOCAL_RATES, (0.7, 1.0), (0.8, 0.9)),
        lambda spread, gamma, rate, momentum: (
            OuterOptimizer(optax.sgd(rate, momentum=momentum, nesterov=True)),
            spread(gamma),
        ),
    ),
    "outer Adam": (
        (LOCAL_RATES, RATES),
        (LOCAL_RATES, (0.01, 0.001)),
        lambda spread, gamma, rate: (OuterOptimizer(loc.OptaxOptimizer(optax.adam, rate)), spread(gamma)),
    ),
    "SGD": ((RATES,), (RATES,), lambda spread, rate: (loc.OptaxOptimizer(optax.sgd, rate), GradientStep())),
    "Adam": ((RATES,), (RATES,), lambda spread, rate: (loc.OptaxOptimizer(optax.adam, rate), GradientStep())),
}


def pooled(images):
    """28x28 images, padded by two pixels on each side and averaged over 4x4 pixels."""
    images = np.pad(np.asarray(images, np.float32).reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return np.round(images.reshape(-1, 8, 4, 8, 4).mean((2, 4))).astype(np.uint8)


def read(folder: Path | None):
    if folder is None:
        return loc.data.digits()
    splits = loc.data.fashion_mnist(folder).splits
    arrays = {name: (pooled(split.images), np.asarray(split.labels)) for name, split in splits.items()}
    return loc.data.image_dataset(arrays, num_classes=10, name="Fashion-MNIST, 8x8")


def make_mlp(dataset, width: int = WIDTH):
    """A function from batch size and parametrization to the task; muP's multipliers are 1 at meta-training's sizes."""
    sizes = dict(width=width, depth=2, base_width=WIDTH, base_in_size=PIXELS)
    return lambda size, parametrization=SP(): loc.tasks.mlp_classification(
        dataset, **sizes, parametrization=parametrization, batch_size=size
    )


def spread(workers: int, steps: int, rate):
    return LocalRound(workers, steps, loc.OptaxOptimizer(optax.sgd, rate))


# By name: a function from the number of hidden units and a key to the aggregator, and what it is.
AGGREGATORS = {
    "LAgg-A": (
        lambda hidden, key: loc.recipes.lagg_a(WORKERS, hidden_size=hidden, key=key),
        f"LAgg-A for {WORKERS} workers in a fixed order: sees every delta",
    ),
    "LOpt-A": (
        lambda hidden, key: loc.recipes.lopt_a(hidden_size=hidden, key=key),
        "LOpt-A for any number of workers: sees the mean delta",
    ),
    "pooled LAgg-A": (
        lambda hidden, key: loc.recipes.pooled_lagg_a(hidden_size=hidden, key=key),
        "pooled LAgg-A for any number of workers in any order: sees a pooled embedding of every delta",
    ),
}


def file_name(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def card(name: str, data: Path | None, smoke: bool, width: int, stages, pairs: int, window: int, horizon) -> loc.Card:
    images = "digits, 8x8" if data is None else "Fashion-MNIST, 8x8"
    options = " --data FOLDER" * (data is not None) + " --smoke" * smoke
    noise = ", then ".join(f"{std:g} for {meta_steps:,} meta-steps" for meta_steps, std, _ in stages)
    return loc.Card(
        name=file_name(name),
        summary=AGGREGATORS[name][1],
        parametrization=MuP(bias_std=0.0),
        base_width=WIDTH,
        base_in_size=PIXELS,
        tasks=f"{images}, MLP with two hidden layers under SP (biases start at zero), rounds of {WORKERS} workers with "
        f"{LOCAL_STEPS} steps of SGD (rate {LOCAL_RATE}, batches of {LOCAL_BATCH})",
        widths=(width,),
        horizon=f"{int(horizon.min_steps)} to {int(horizon.max_steps):,} rounds, log-uniform",
        estimator=f"PES, {pairs} pairs, windows of {window} rounds, std {noise}",
        seed=0,
        command=f'python examples/communication_rounds.py --meta-train --learned "{name}"{options}',
        source="Joseph, Thérien et al. (arXiv 2312.02204)",
    )


def meta_train(learner, card: loc.Card, task, out: loc.Pretrained, stages, pairs: int, window: int, horizon):
    unroll = TruncatedUnroll(task, horizon, window, inner_step=spread(WORKERS, LOCAL_STEPS, LOCAL_RATE))
    runs = [out.folder / f"{card.name}-{i}" for i in range(1, len(stages) + 1)]
    for i, ((meta_steps, std, rate), run) in enumerate(zip(stages, runs, strict=True), 1):
        learner = loc.meta.meta_train(
            learner,
            loc.estimators.PES(unroll, num_pairs=pairs, std=std),
            num_steps=meta_steps,
            optimizer=loc.meta.meta_optimizer(meta_steps, peak=rate, end=0.0),
            checkpoints=loc.meta.Checkpoints(run, {"name": card.name, "meta_steps": meta_steps}),
            log_every=10,
            progress=f"{card.name}, stage {i}",
            key=jax.random.key(i),
        )
    out.save(learner, card, runs=runs)


def tuned(make_task, name: str, workers: int, steps: int, rounds: int, batch: int, coarse: bool, key):
    """A baseline's best learner and inner step, the task, the best configuration, and the number of configurations."""
    fine, few, make = BASELINES[name]
    configurations = list(itertools.product(*(few if coarse else fine)))
    size = batch * workers * steps if name in ("SGD", "Adam") else batch
    task = make_task(size)

    def run(configuration):
        learner, inner_step = make(lambda rate: spread(workers, steps, rate), *configuration)
        return loc.meta.evaluate(learner, task, num_steps=rounds, inner_step=inner_step, num_seeds=1, key=key)

    grid = tuple(jnp.asarray(values, jnp.float32) for values in zip(*configurations, strict=True))
    best = configurations[loc.meta.sweep(run, grid, at_once=16).best().index]
    return *make(lambda rate: spread(workers, steps, rate), *best), task, best, len(configurations)


def counted(rounds: float) -> str:
    return f"{rounds:.0f}" if np.isfinite(rounds) else "never"


def compare(
    title,
    make_task,
    learned,
    *,
    workers=WORKERS,
    steps=LOCAL_STEPS,
    rounds,
    seeds,
    coarse,
    mup=False,
    batch=LOCAL_BATCH,
    names=tuple(BASELINES),
):
    """Losses `[seeds, rounds]` by name; prints the rounds to the final losses of local SGD and of the best baseline."""
    begin, key = time.perf_counter(), jax.random.key(2)
    curves, chosen = {}, {}
    settings = {"": (make_task(batch), spread(workers, steps, LOCAL_RATE))}
    if mup:
        settings[", muP"] = (make_task(batch, MuP(bias_std=0.0)), spread(workers, steps, LOCAL_RATE))
    for (name, aggregator), (suffix, (task, inner)) in itertools.product(learned.items(), settings.items()):
        curves[name + suffix] = loc.meta.evaluate(
            aggregator, task, num_steps=rounds, inner_step=inner, num_seeds=seeds, key=key
        )
    for name in names:
        learner, inner, task, best, count = tuned(
            make_task, name, workers, steps, rounds, batch, coarse, jax.random.key(3)
        )
        curves[name] = loc.meta.evaluate(learner, task, num_steps=rounds, inner_step=inner, num_seeds=seeds, key=key)
        chosen[name] = f"  {', '.join(f'{x:g}' for x in best)} (best of {count})"
        print(f"{name}:{chosen[name]}, {time.perf_counter() - begin:.0f} s", flush=True)
    finals = {name: float(np.median(curves[name].final())) for name in curves}
    best = min(names, key=finals.__getitem__)
    targets = {"local SGD": finals["local SGD"], best: finals[best]}
    params = make_task(batch).init(key=key)
    cost = loc.aggregators.round_cost(params, workers, local_steps=steps, batch_size=batch)
    print(
        f"\n{title}: K = {workers}, H = {steps}; in a round a worker sends {cost.bytes_sent / 1e3:.1f} kB, and all "
        f"workers take {cost.samples} samples.\nRounds to the final loss of two baselines, median of {seeds} seeds "
        "(lowest to highest):"
    )
    print(
        f"{'':<20}" + "".join(f"{f'{name}, {loss:.4f}':>28}" for name, loss in targets.items()) + f"{'final loss':>12}"
    )
    for name, evaluation in curves.items():
        cells = []
        for loss in targets.values():
            taken = np.asarray(evaluation.steps_to(loss))
            cells.append("{} ({} to {})".format(*map(counted, (np.median(taken), taken.min(), taken.max()))))
        print(f"{name:<20}" + "".join(f"{c:>28}" for c in cells) + f"{finals[name]:>12.4f}{chosen.get(name, '')}")
    print(flush=True)
    return {name: np.asarray(evaluation.losses) for name, evaluation in curves.items()}


def make_cnn(dataset):
    return lambda size: loc.tasks.cnn_classification(dataset, width=16, batch_size=size)


def read_cifar10(folder: Path | None):
    if folder is None:
        raise ValueError("The panel CIFAR-10 needs `--cifar10`, the folder with CIFAR-10's batches.")
    return loc.data.cifar10(folder)


def as_meta_trained(dataset, cifar10: Path | None):
    return make_mlp(dataset)


# By title: a function from the data set and CIFAR-10's folder to the task, and other differences from meta-training.
PANELS = {
    "width 32": (as_meta_trained, dict()),
    "H = 8": (as_meta_trained, dict(steps=8)),
    "H = 16": (as_meta_trained, dict(steps=16)),
    "K = 4": (as_meta_trained, dict(workers=4)),
    "K = 16": (as_meta_trained, dict(workers=16)),
    "width 128": (lambda dataset, cifar10: make_mlp(dataset, 128), dict(mup=True)),
    "CNN": (lambda dataset, cifar10: make_cnn(dataset), dict()),
    "CIFAR-10": (lambda dataset, cifar10: make_mlp(read_cifar10(cifar10)), dict(mup=True)),
}


def main(
    data: Path | None = None,
    cifar10: Path | None = None,
    out: Path = Path("communication_rounds.png"),
    rounds: int = 1000,
    seeds: int = 10,
    panels: list[str] | None = None,
    learned: Sequence[str] = ("LAgg-A", "LOpt-A"),
    meta: bool = False,
    smoke: bool = False,
) -> None:
    panels = panels or ["width 32"]
    if "all" in panels:
        panels = [name for name in PANELS if name != "CIFAR-10" or cifar10 is not None]
    dataset, hidden, stages, pairs, window, horizon = read(data), 32, STAGES, 4, 50, LogUniformHorizon(100, 1000)
    names, elsewhere = tuple(BASELINES), ("local SGD", "SlowMo", "outer Nesterov")
    if smoke:
        hidden, stages, pairs, window, horizon = 2, ((2, 0.1, 1e-2), (2, 0.02, 3e-3)), 1, 2, LogUniformHorizon(2, 4)
        rounds, seeds = 20, 2
        names = elsewhere = ("local SGD", "outer Adam", "Adam")
    width, key = 4 if smoke else WIDTH, jax.random.key(0)
    make_task = make_mlp(dataset, width)
    tasks = {panel: make_task if smoke else PANELS[panel][0](dataset, cifar10) for panel in panels}
    out.parent.mkdir(parents=True, exist_ok=True)
    source = loc.pretrained
    if meta:
        source, settings = loc.Pretrained(out.with_suffix("")), (stages, pairs, window, horizon)
        for name in learned:
            described = card(name, data, smoke, width, *settings)
            meta_train(AGGREGATORS[name][0](hidden, key), described, make_task(LOCAL_BATCH), source, *settings)
    aggregators = {name: source(file_name(name)) for name in learned}
    curves = {}
    for panel, make in tasks.items():
        same, differing = panel == "width 32", PANELS[panel][1]
        fits = [name for name in aggregators if name != "LAgg-A" or "workers" not in differing]
        found = compare(
            panel,
            make,
            {name: aggregators[name] for name in fits},
            rounds=rounds if same else rounds // 2,
            seeds=seeds if same else min(seeds, 3),
            coarse=smoke or not same,
            names=names if same else elsewhere,
            **differing,
        )
        # One line per learner in the figure; if the table has two, the one under muP.
        title = f"{panel} (learned: muP)" if differing.get("mup") else panel
        curves[title] = {name: found.get(f"{name}, muP", found[name]) for name in found if not name.endswith(", muP")}
    loc.plots.training_curves(curves, out, title="Loss over communication rounds", unit="round")
    print(f"figure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10's batches, for the panel CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("communication_rounds.png"))
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--panels", nargs="+", choices=["all", *PANELS], help="what to compare (default: the first)")
    every = list(AGGREGATORS)
    parser.add_argument("--learned", nargs="+", choices=every, default=every[:2], help="learned aggregators")
    parser.add_argument("--meta-train", action="store_true", dest="meta", help="meta-train them first")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
