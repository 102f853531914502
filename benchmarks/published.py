"""Time one update of published learned optimizers and of `optax.adam`, in one process, with random weights.

The models are an MLP 784-1024-1024-10 and a transformer of 12 layers and 193 tensors. Prints a table and writes
`benchmarks/results/published.json`: nanoseconds per parameter as medians of interleaved calls, the median ratio to
Adam, the size of the state, and seconds of tracing and compiling. On a noisy machine quote the ratios. Run:
`python benchmarks/published.py`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from models import mlp, transformer
from report import RESULTS, write
from timed_update import TimedUpdate, adam, row, small_fc_lopt, time_in_turn

import lo_components as loc

RESULT = RESULTS / "published.json"
NUM_STEPS = 1000


def published(recipe: Callable, *args: float) -> optax.GradientTransformation:
    """A recipe that is told the loss and the length of training in each step."""
    made = loc.as_optax(recipe(*args, key=jax.random.key(0)))

    def update(grads, state, params):
        return made.update(grads, state, params, value=jax.numpy.float32(1.0), num_steps=NUM_STEPS)

    return optax.GradientTransformation(made.init, update)


def main(rounds: int = 12, quick: bool = False, out: Path = RESULT):
    models = {"MLP": mlp(), "transformer": transformer(12)} if not quick else {"MLP": mlp(64, 64)}
    recipes = loc.recipes
    transformations = {
        "optax.adam": adam(),
        "celo_adam": published(recipes.celo_adam),
        "sinv6": published(recipes.sinv6),
        "small_fc_lopt 4x2": small_fc_lopt(4, 2),
        "celo": published(recipes.celo),
        "celo2_base": published(recipes.celo2_base, 1e-3),
        "celo2": published(recipes.celo2, 1e-3),
        "velo": published(recipes.velo),
    }
    rows = []
    print(
        f"{'model':<12}{'tensors':>8}  {'optimizer':<18}{'ns/param':>10}{'x adam':>8}{'state/param':>12}{'trace s':>9}"
        f"{'compile s':>11}"
    )
    for model, shapes in models.items():
        contenders = {name: TimedUpdate(transformation, shapes) for name, transformation in transformations.items()}
        time_in_turn(contenders.values(), rounds=5 if quick else rounds, calls=3)
        for name, contender in contenders.items():
            size = sum(x.size for x in jax.tree.leaves(contender.state)) / contender.num_params
            r = {"state_per_param": size, **row(contender, contenders["optax.adam"])}
            rows.append({"model": model, "tensors": len(shapes), "optimizer": name, **r})
            print(
                f"{model:<12}{len(shapes):>8}  {name:<18}{r['ns_per_param']:>10.2f}{r['ratio_to_adam']:>8.1f}"
                f"{size:>12.2f}{r['trace_seconds']:>9.2f}{r['compile_seconds']:>11.2f}",
                flush=True,
            )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a small MLP, five rounds")
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
