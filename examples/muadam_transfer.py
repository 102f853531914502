"""Tune Adam on a narrow network and train wide ones with the same hyperparameters: muAdam transfers, Adam does not.

    python examples/muadam_transfer.py                  # digits
    python examples/muadam_transfer.py --data FOLDER    # Fashion-MNIST's four idx files
    python examples/muadam_transfer.py --smoke          # a tiny version

At the narrow width, one compiled call searches a grid over the learning rate and three multipliers under muP (500
configurations, the muLO paper's protocol). Then only the learning rate is swept, at every width, under muP and under
SP. Prints a table and saves a figure.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lo_components as loc
from lo_components.parametrization import SP, MuP

GRID = list(itertools.product((1e-1, 1e-2, 1e-3, 1e-4), *[(2.0**-4, 2.0**-2, 1.0, 2.0**2, 2.0**4)] * 3))
RATES = tuple(10.0 ** (-4.5 + 0.5 * i) for i in range(10))


def make_task(dataset, width: int, parametrization):
    return loc.tasks.mlp_classification(dataset, width=width, depth=2, parametrization=parametrization)


def with_multipliers(task, input_mult, output_mult, hidden_mult):
    """A muP task with other hyper-multipliers. They may be traced, so a whole grid is compiled once."""

    def places(task):
        first, *_, last = task.trained.rest.layers
        return [first.multiplier, last.multiplier, task.trained.parametrization.hidden_mult]

    factors = input_mult, output_mult, hidden_mult
    return eqx.tree_at(places, task, [x * factor for x, factor in zip(places(task), factors, strict=True)])


def sweep(task, configurations, steps: int, num_seeds: int, at_once: int, key) -> loc.meta.Sweep:
    """Train with every configuration: a learning rate and, optionally, three multipliers."""

    def run(configuration):
        learning_rate, *multipliers = configuration
        tuned = with_multipliers(task, *multipliers) if multipliers else task
        adam = loc.OptaxOptimizer(optax.adam, learning_rate)
        return loc.meta.evaluate(adam, tuned, num_steps=steps, num_seeds=num_seeds, key=key)

    grid = tuple(jnp.asarray(values, jnp.float32) for values in configurations)
    return loc.meta.sweep(run, grid, at_once=at_once)


def main(
    data: Path | None = None,
    out: Path = Path("muadam_transfer.png"),
    tune_width: int = 128,
    widths: tuple[int, ...] = (128, 1024, 2048),
    steps: int = 500,
    num_seeds: int = 3,
    smoke: bool = False,
) -> None:
    dataset = loc.data.digits() if data is None else loc.data.fashion_mnist(data)
    grid, rates = GRID, RATES
    if smoke:
        grid, rates, tune_width, widths, steps, num_seeds = GRID[62::125], RATES[3::3], 8, (8, 16), 5, 2
    key = jax.random.key(0)

    begin = time.perf_counter()
    found = sweep(make_task(dataset, tune_width, MuP()), tuple(zip(*grid, strict=True)), steps, 1, 25, key).best()
    best = grid[found.index]
    print(
        f"muAdam, best of {len(grid)} configurations at width {tune_width} after {steps} steps, in "
        f"{time.perf_counter() - begin:.0f} s:\n  learning rate {best[0]:g}, input {best[1]:g}, output {best[2]:g}, "
        f"hidden {best[3]:g}: loss {found.score:.4f}",
        flush=True,
    )
    panels: dict[str, dict[int, np.ndarray]] = {"SP, Adam": {}, "muP, muAdam": {}}
    print(f"\n{'':<12}{'width':>6}{'best rate':>11}   loss at each learning rate, median of {num_seeds} seeds")
    print(" " * 29 + "   " + "".join(f"{rate:>9.1e}" for rate in rates))
    for name, parametrization, multipliers in (("SP, Adam", SP(), ()), ("muP, muAdam", MuP(), best[1:])):
        for width in widths:
            task = make_task(dataset, width, parametrization)
            task = with_multipliers(task, *multipliers) if multipliers else task
            curves = sweep(task, (rates,), steps, num_seeds, 1 if width > 512 else 10, key)
            panels[name][width] = losses = np.asarray(curves.evaluations.final())
            rate = rates[curves.best(lambda e: jnp.median(e.final(), axis=1, keepdims=True)).index]
            middle = np.median(losses, axis=1)
            print(f"{name:<12}{width:>6}{rate:>11.1e}   " + "".join(f"{x:>9.4f}" for x in middle), flush=True)
    loc.plots.transfer(panels, np.asarray(rates), out, title=f"{steps} steps of Adam; dots mark the best learning rate")
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("muadam_transfer.png"))
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
