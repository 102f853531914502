"""Compare optimizers with the baselines of the suite. Run: `python -m benchmarks.suite --data DATA --out OUT`.

An OPTIMIZER is a file of `lo_components.weights.save`, or `module:name`, where the name is that of an `Optimizer`, an
optimizer, an optax transformation, or a function from a learning rate and the number of steps to one of them. Without
any, the baselines run.
"""

import os

# One core for each run: the threads that XLA would add gain little on models of this size.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

from pathlib import Path

from . import HORIZONS, TASKS, run
from .arguments import parser, pop_optimizers
from .curves import BASELINES as CURVES

SMOKE = dict(tasks=["mlp-8x8", "autoencoder"], horizons=[50], seeds=2)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--out", type=Path, required=True, help="the folder of results; an interrupted run continues")
    command.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    command.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS), help="numbers of steps")
    command.add_argument("--seeds", type=int, default=3, help="runs that decide the scores")
    command.add_argument("--tuning-seeds", type=int, default=1, help="runs for each learning rate of a grid")
    command.add_argument("--jobs", type=int, default=1, help="runs at once, each on one core")
    command.add_argument("--over", help="the name of an optimizer to compare the others with, seed by seed")
    command.add_argument(
        "--baselines", type=Path, default=CURVES, help="curves of the baselines; those missing are run"
    )
    command.add_argument("--smoke", action="store_true", help="two tasks, 50 steps, two seeds")
    arguments = vars(command.parse_args())
    smoke, optimizers = arguments.pop("smoke"), pop_optimizers(arguments)
    report = run(*optimizers, **(arguments | SMOKE if smoke else arguments))
    print("\n".join(report.tables(arguments["over"])))


if __name__ == "__main__":
    main()
