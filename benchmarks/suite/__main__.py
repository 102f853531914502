"""Compare optimizers with the baselines of the suite. Run: `python -m benchmarks.suite --data DATA --out OUT`.

An OPTIMIZER is a file of `lo_components.weights.save`, or `module:name`, where the name is that of an `Optimizer`, an
optimizer, an optax transformation, or a function from a learning rate and the number of steps to one of them. Without
any, the baselines run.
"""

import os

# One core for each run: the threads that XLA would add gain little on models of this size.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
from pathlib import Path

from lo_components.parametrization import SP, MuP

from . import HORIZONS, TASKS, Growth, Optimizer, run
from .curves import BASELINES as CURVES

SMOKE = dict(tasks=["mlp-8x8", "autoencoder"], horizons=[50], seeds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data, see data.py")
    parser.add_argument("--out", type=Path, required=True, help="the folder of results; an interrupted run continues")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1.0], help="learning rates; a single one is not tuned"
    )
    parser.add_argument(
        "--mup", action="store_true", help="train models under muP, with width 32 and 64 inputs as base"
    )
    parser.add_argument("--absolute", action="store_true", help="with --mup: the papers' convention, without a base")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    parser.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS), help="numbers of steps")
    parser.add_argument("--seeds", type=int, default=3, help="runs that decide the scores")
    parser.add_argument("--tuning-seeds", type=int, default=1, help="runs for each learning rate of a grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one core")
    parser.add_argument("--over", help="the name of an optimizer to compare the others with, seed by seed")
    parser.add_argument("--baselines", type=Path, default=CURVES, help="curves of the baselines; those missing are run")
    parser.add_argument("--smoke", action="store_true", help="two tasks, 50 steps, two seeds")
    arguments = vars(parser.parse_args())
    smoke, mup, absolute = (arguments.pop(name) for name in ("smoke", "mup", "absolute"))
    base = dict(base_width=None, base_in_size=None) if absolute else {}
    growth = Growth(MuP() if mup else SP(), **base)
    rates = tuple(arguments.pop("rates"))
    optimizers = [Optimizer.named(text, rates, growth) for text in arguments.pop("optimizers")]
    report = run(*optimizers, **(arguments | SMOKE if smoke else arguments))
    print("\n".join(report.tables(arguments["over"])))


if __name__ == "__main__":
    main()
