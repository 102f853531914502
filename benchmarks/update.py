"""Time one update of a 784-1024-1024-10 MLP by learned optimizers and by `optax.adam`, in one process.

Prints a table and writes `benchmarks/results/update.json`. Figures are medians of interleaved calls; on a noisy machine
quote the ratios. Run: `python benchmarks/update.py`.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import optax
from report import RESULTS, write

import lo_components as loc

RESULT = RESULTS / "update.json"
SHAPES = {"w0": (1024, 784), "b0": (1024,), "w1": (1024, 1024), "b1": (1024,), "w2": (10, 1024), "b2": (10,)}


def transformations():
    key = jax.random.key(0)
    yield "optax.adam", optax.adam(1e-3)
    for hidden_size, hidden_layers in ((4, 2), (32, 1), (32, 2)):
        optimizer = loc.recipes.small_fc_lopt(hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
        yield f"small_fc_lopt {hidden_size}x{hidden_layers}", loc.optimizers.as_optax(optimizer)


class Contender:
    """One compiled `update` + `apply_updates` with parameters and state donated."""

    def __init__(self, transformation):
        keys = jax.random.split(jax.random.key(1), len(SHAPES))
        self.params = {k: 0.03 * jax.random.normal(key, SHAPES[k]) for k, key in zip(SHAPES, keys, strict=True)}
        self.grads = jax.tree.map(lambda p: 0.1 * p + 1e-3, self.params)
        self.state = transformation.init(self.params)
        self.num_params = sum(p.size for p in jax.tree.leaves(self.params))

        def step(params, state, grads):
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        begin = time.perf_counter()
        self.step = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.temp_bytes = self.step.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, calls: int):
        begin = time.perf_counter()
        for _ in range(calls):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready(self.params)
        self.seconds.append((time.perf_counter() - begin) / calls)


def main(rounds: int = 12, calls: int = 5, out: Path = RESULT):
    contenders = {name: Contender(transformation) for name, transformation in transformations()}
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run(calls)
    adam = statistics.median(contenders["optax.adam"].seconds[1:])
    rows = []
    print(f"{'optimizer':<20}{'ns/param':>10}{'x adam':>8}{'temp B/param':>14}{'compile s':>11}")
    for name, contender in contenders.items():
        seconds = statistics.median(contender.seconds[1:])
        row = {
            "optimizer": name,
            "ns_per_param": 1e9 * seconds / contender.num_params,
            "ratio_to_adam": seconds / adam,
            "temp_bytes_per_param": contender.temp_bytes / contender.num_params,
            "compile_seconds": contender.compile_seconds,
        }
        rows.append(row)
        print(
            f"{name:<20}{row['ns_per_param']:>10.2f}{row['ratio_to_adam']:>8.1f}"
            f"{row['temp_bytes_per_param']:>14.1f}{row['compile_seconds']:>11.2f}"
        )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
