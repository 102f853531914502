"""Time PES meta-training, including resets and meta-optimizer, against a naive evaluation of the same optimizer.

A: digits, batch 64, one hidden layer of 32, 8 pairs, head 4 x 2. B: 28x28 images, batch 128, two hidden layers of 32, 8
pairs, head 32 x 1. The truncation window is 50. Prints inner steps per second (counting both members of a pair), as
medians of interleaved calls, and the seconds until the first meta-step is made; writes `benchmarks/results/pes.json`.
On a noisy machine quote the ratios. Run: `python benchmarks/pes.py`.
"""

import argparse
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from naive import naive
from report import RESULTS, write

import lo_components as loc

RESULT = RESULTS / "pes.json"
PAIRS, WINDOW = 8, 50


def random_images() -> loc.data.ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    return loc.data.image_dataset(
        {"train": (images, rng.integers(0, 10, 10_000))}, num_classes=10, name="random images"
    )


def settings(quick: bool):
    key = jax.random.key(0)
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    yield "A", task, loc.recipes.small_fc_lopt(hidden_size=4, hidden_layers=2, key=key)
    if quick:
        return
    task = loc.tasks.mlp_classification(random_images(), width=32, depth=2, batch_size=128)
    yield "B", task, loc.recipes.small_fc_lopt(hidden_size=32, hidden_layers=1, key=key)


class Contender:
    """One compiled meta-step with its state."""

    def __init__(self, task, optimizer):
        begin = time.perf_counter()
        unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(100, 1000), WINDOW)
        self.estimator = loc.estimators.PES(unroll, num_pairs=PAIRS)
        meta_optimizer = loc.meta.meta_optimizer(1000)
        init = eqx.filter_jit(loc.meta.init_meta_state)
        self.state = init(optimizer, self.estimator, meta_optimizer, key=jax.random.key(1))
        self.step = eqx.filter_jit(lambda estimator, state: loc.meta.meta_step(state, estimator, meta_optimizer))
        initialized = time.perf_counter()
        self.seconds: list[float] = []
        self.run()
        now = time.perf_counter()
        self.compile_seconds, self.first_step_seconds = now - initialized, now - begin
        self.seconds.clear()

    def run(self) -> None:
        begin = time.perf_counter()
        self.state, metrics = self.step(self.estimator, self.state)
        jax.block_until_ready(metrics)
        self.seconds.append(time.perf_counter() - begin)


def main(rounds: int = 15, quick: bool = False, out: Path = RESULT):
    rows = []
    for name, task, optimizer in settings(quick):
        ours = Contender(task, optimizer)
        plain = None if quick else Contender(task, naive(optimizer))
        for _ in range(rounds):
            ours.run()
            if plain is not None:
                plain.run()
        steps = 2 * PAIRS * WINDOW
        row = {
            "setting": name,
            "steps_per_second": steps / statistics.median(ours.seconds),
            "compile_seconds": ours.compile_seconds,
            "first_step_seconds": ours.first_step_seconds,
        }
        line = f"{name}: {row['steps_per_second']:,.0f} inner steps/s"
        if plain is not None:
            row["naive_steps_per_second"] = steps / statistics.median(plain.seconds)
            row["ratio_to_naive"] = statistics.median(p / o for p, o in zip(plain.seconds, ours.seconds, strict=True))
            line += f", naive {row['naive_steps_per_second']:,.0f}, ratio {row['ratio_to_naive']:.2f}"
        rows.append(row)
        print(f"{line}, first meta-step after {row['first_step_seconds']:.1f} s", flush=True)
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="A only, without the naive evaluation")
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
