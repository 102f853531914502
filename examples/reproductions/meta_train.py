"""Meta-train the optimizers and aggregators that the other scripts of this folder compare, at the scale of two cores.

    python examples/reproductions/meta_train.py --data FOLDER --out FOLDER                 # muLO and LO
    python examples/reproductions/meta_train.py --data FOLDER --out FOLDER --names lagg_a  # an aggregator
    python examples/reproductions/meta_train.py --smoke                                    # a tiny version

Each is written to `NAME.safetensors`, for `--weights FOLDER` of the other scripts. If a run is interrupted, run it
again to continue. `mulo_s` and `lo_s` are meta-trained on MLPs of one width, `mulo_m` and `lo_m` on a mixture of
several, with as many pairs in total. The paper's scale:

    ... --width 128 --widths 128 512 1024 --depth 3 --batch-size 4096 --pixels 32 --hidden-size 32 --std 0.01
        --rate 3e-3 --meta-steps 5000 --pairs 8
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
from _compare import program
from _rounds import LOCAL_BATCH, LOCAL_RATE, LOCAL_STEPS, WORKERS, local_round, meta_trained_mlp
from _tasks import DATA, images, mlp

import lo_components as loc
from lo_components.estimators import PES, Mixture
from lo_components.parametrization import SP, MuP
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

OPTIMIZERS = ("mulo_s", "mulo_m", "lo_s", "lo_m")
# By name: the recipe, and what it is.
AGGREGATORS: dict[str, tuple[Callable, str]] = {
    "lagg_a": (
        lambda **options: loc.recipes.lagg_a(WORKERS, **options),
        f"LAgg-A for {WORKERS} workers in a fixed order: sees every delta",
    ),
    "lopt_a": (loc.recipes.lopt_a, "LOpt-A for any number of workers: sees the mean delta"),
    "pooled_lagg_a": (
        loc.recipes.pooled_lagg_a,
        "pooled LAgg-A for any number of workers in any order: sees a pooled embedding of every delta",
    ),
}
# Of aggregators: meta-steps, standard deviation of the noise, and peak meta-learning rate.
STAGES = ((1500, 0.1, 1e-2), (300, 0.02, 3e-3))


def meta_train(name: str, learner, estimator, meta_steps: int, rate: float, folder: Path, settings: dict, key):
    return loc.meta.meta_train(
        learner,
        estimator,
        num_steps=meta_steps,
        optimizer=loc.meta.meta_optimizer(meta_steps, peak=rate, end=0.0),
        checkpoints=loc.meta.Checkpoints(folder, settings),
        log_every=10,
        progress=name,
        key=key,
    )


def optimizer(name: str, args):
    """The optimizer, its card, and the folders of its runs."""
    under_mup, widths = name.startswith("mulo"), args.widths if name.endswith("_m") else [args.width]
    dataset, horizon = images("fashion_mnist", args.data, args.pixels), LogUniformHorizon(args.shortest, args.horizon)
    pairs = max(1, args.pairs // len(widths))

    def estimator(width: int):
        task = mlp(dataset, width, args.depth, args.batch_size)(parametrization=MuP() if under_mup else SP())
        return PES(TruncatedUnroll(task, horizon, args.window), num_pairs=pairs, std=args.std)

    estimators = [estimator(width) for width in widths]
    mixture = Mixture(estimators, names=[f"width {width}" for width in widths])
    step_mult = 1e-2 if under_mup else 1e-3  # the paper's values
    learner = loc.recipes.small_fc_lopt(
        hidden_size=args.hidden_size, step_mult=step_mult, key=jax.random.key(args.seed)
    )
    several, size = len(widths) > 1, args.hidden_size
    settings = {"name": name, "widths": widths} | {key: getattr(args, key) for key in SETTINGS}
    estimator, key = mixture if several else estimators[0], jax.random.key(args.seed + 1)
    run = args.out / name
    learner = meta_train(name, learner, estimator, args.meta_steps, args.rate, run, settings, key)
    card = loc.Card(
        name=name,
        summary=f"{'muLO' if under_mup else 'LO, the control of muLO'}, meta-trained under "
        f"{'muP' if under_mup else 'SP'} at {'several widths' if several else 'one width'}, with a head of {size} x 2 "
        "units",
        parametrization=MuP() if under_mup else SP(),
        base_width=None,
        tasks=f"{data_name(args)}, {args.pixels}x{args.pixels}, MLP with {args.depth} hidden layers, batches of "
        f"{args.batch_size}",
        widths=tuple(widths),
        horizon=f"{args.shortest} to {args.horizon:,} steps, log-uniform",
        estimator=f"PES, {pairs} pairs{' for each width' * several}, std {args.std}, windows of {args.window} steps",
        seed=args.seed,
        command=command(name, args),
        source="Thérien et al., muLO (arXiv 2406.00153)",
    )
    return learner, card, [run]


def aggregator(name: str, args):
    """The aggregator, its card, and the folders of its runs."""
    hidden, stages, pairs, window, horizon = 32, STAGES, 4, 50, LogUniformHorizon(100, 1000)
    if args.smoke:
        hidden, stages, pairs, window, horizon = 2, ((2, 0.1, 1e-2), (2, 0.02, 3e-3)), 1, 2, LogUniformHorizon(2, 4)
    task = meta_trained_mlp(images("fashion_mnist", args.data, 8))(parametrization=SP(), batch_size=LOCAL_BATCH)
    unroll = TruncatedUnroll(task, horizon, window, inner_step=local_round(WORKERS, LOCAL_STEPS, LOCAL_RATE))
    settings = {"name": name, "hidden_size": hidden, "stages": stages, "pairs": pairs, "window": window}
    recipe, summary = AGGREGATORS[name]
    learner, runs = recipe(hidden_size=hidden, key=jax.random.key(args.seed)), []
    for i, (meta_steps, std, rate) in enumerate(stages, 1):
        runs.append(args.out / f"{name}-{i}")
        estimator, key = PES(unroll, num_pairs=pairs, std=std), jax.random.key(args.seed + i)
        learner = meta_train(f"{name}, stage {i}", learner, estimator, meta_steps, rate, runs[-1], settings, key)
    noise = ", then ".join(f"{std:g} for {meta_steps:,} meta-steps" for meta_steps, std, _ in stages)
    card = loc.Card(
        name=name,
        summary=summary,
        parametrization=MuP(bias_std=0.0),
        base_width=32,
        base_in_size=64,
        tasks=f"{data_name(args)}, 8x8, MLP with two hidden layers under SP (biases start at zero), rounds of "
        f"{WORKERS} workers with {LOCAL_STEPS} steps of SGD (rate {LOCAL_RATE}, batches of {LOCAL_BATCH})",
        widths=(32,),
        horizon="100 to 1,000 rounds, log-uniform",
        estimator=f"PES, {pairs} pairs, windows of {window} rounds, std {noise}",
        seed=args.seed,
        command=command(name, args),
        source="Joseph, Thérien et al. (arXiv 2312.02204)",
    )
    return learner, card, runs


def command(name: str, args) -> str:
    """What makes it again: the options that differ from their defaults."""
    differing = "".join(
        f" --{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in vars(args).items()
        if key not in ("data", "out", "names", "smoke") and value != PARSER.get_default(key)
    )
    return f"python examples/reproductions/meta_train.py --data FOLDER --names {name}{differing}"


def data_name(args) -> str:
    return "digits" if args.data is None else "Fashion-MNIST"


SETTINGS = (
    "depth",
    "batch_size",
    "pixels",
    "hidden_size",
    "meta_steps",
    "shortest",
    "horizon",
    "window",
    "std",
    "rate",
)


def main(args) -> None:
    for name in args.names:
        begin = time.perf_counter()
        learner, card, runs = (aggregator if name in AGGREGATORS else optimizer)(name, args)
        loc.Pretrained(args.out).save(learner, card, runs=runs)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"{DATA} (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("reproductions/weights"))
    parser.add_argument("--names", nargs="+", choices=(*OPTIMIZERS, *AGGREGATORS), default=OPTIMIZERS)
    parser.add_argument("--width", type=int, default=32, help="width for optimizers of one width")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="widths for those of several")
    parser.add_argument("--depth", type=int, default=2, help="hidden layers")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=4, help="units of a hidden layer of the optimizer")
    parser.add_argument("--meta-steps", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of particles, over all widths")
    parser.add_argument("--shortest", type=int, default=100, help="the shortest horizon")
    parser.add_argument("--horizon", type=int, default=1000, help="the longest horizon")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--std", type=float, default=0.05, help="standard deviation of the noise")
    parser.add_argument("--rate", type=float, default=1e-2, help="peak meta-learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    return parser


PARSER = parser()

if __name__ == "__main__":
    args = PARSER.parse_args()
    if args.smoke:
        tiny = dict(names=["mulo_m", "lopt_a"], widths=[4, 8], batch_size=4, hidden_size=2, meta_steps=3, pairs=2)
        vars(args).update(tiny | dict(shortest=4, horizon=8, window=2))
    program(lambda: main(args))
