"""Time PES meta-steps with batches from a stream, against batches from a data set on the device.

28x28 random images, batch 128, 4 pairs, truncation window 20; each meta-step takes a window of 20 batches from
`data.pipeline`. Rounds of both alternate. Prints milliseconds per meta-step in the fastest round, and the fraction of
it spent waiting for the window, with and without the thread that reads ahead, and writes
`benchmarks/results/streaming.json`. Run: `python benchmarks/streaming.py`.
"""

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path

import equinox as eqx
import jax
from pes import random_images
from report import RESULTS, write

import lo_components as loc

RESULT = RESULTS / "streaming.json"
KEY = jax.random.key(0)
BATCHES = 20


def tasks(dataset):
    yield "MLP, width 32", loc.tasks.mlp_classification(dataset, width=32, depth=2)
    yield "CNN, width 8", loc.tasks.cnn_classification(dataset, width=8, depth=2)


class Contender:
    """Compiled meta-steps, which take windows from an iterator if there is one."""

    def __init__(self, task, windows=None):
        unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(100, 1000), 20)
        learner = loc.recipes.small_fc_lopt(hidden_size=4, key=KEY)
        optimizer = loc.meta.meta_optimizer(1000)
        self.estimator, self.windows = loc.estimators.PES(unroll, num_pairs=4), windows
        self.state = eqx.filter_jit(loc.meta.init_meta_state)(learner, self.estimator, optimizer, key=KEY)
        self.step = eqx.filter_jit(lambda estimator, state: loc.meta.meta_step(state, estimator, optimizer))
        self.seconds: list[float] = []
        self.waited: list[float] = []

    def run(self, steps: int) -> None:
        """Steps that are dispatched while the previous one runs, as in `meta_train`."""
        jax.block_until_ready(self.state)
        begin, waited, running = time.perf_counter(), 0.0, ()
        for _ in range(steps):
            if self.windows is not None:
                asked = time.perf_counter()
                window = next(self.windows)
                waited += time.perf_counter() - asked
                self.estimator = loc.tasks.with_window(self.estimator, window)
            self.state, metrics = self.step(self.estimator, self.state)
            jax.block_until_ready(running)
            running = metrics.loss
        jax.block_until_ready(self.state)
        self.seconds.append((time.perf_counter() - begin) / steps)
        self.waited.append(waited / steps)

    def measured(self) -> tuple[float, float]:
        """Milliseconds per step in the fastest round but the first, and the median fraction of a step spent waiting."""
        fractions = [waited / seconds for waited, seconds in zip(self.waited, self.seconds, strict=True)]
        return 1e3 * min(self.seconds[1:]), statistics.median(fractions[1:])


def measured(name: str, dataset, task, rounds: int, steps: int) -> dict:
    """One row of the table."""

    def windows():
        return loc.data.windows(loc.data.pipeline(dataset, task.batch_size, seed=0), BATCHES)

    streamed = loc.tasks.Streamed(task, BATCHES)
    with closing(loc.data.prefetch_to_device(windows(), 1)) as ahead, closing(windows()) as alone:
        contenders = Contender(task), Contender(streamed, ahead), Contender(streamed, alone)
        for _ in range(rounds + 1):
            for contender in contenders:
                contender.run(steps)
    on_device, prefetched, waiting = (c.measured() for c in contenders)
    return {
        "task": name,
        "on_device_ms": on_device[0],
        "streamed_ms": prefetched[0],
        "waiting_fraction": prefetched[1],
        "without_thread_ms": waiting[0],
        "without_thread_waiting_fraction": waiting[1],
    }


def main(rounds: int = 15, steps: int = 4, out: Path = RESULT):
    rows, dataset = [], random_images()
    print(f"{'task':<16}{'on device':>11}{'streamed':>10}{'waiting':>9}{'no thread':>11}{'waiting':>9}  (ms)")
    for name, task in tasks(dataset):
        rows.append(row := measured(name, dataset, task, rounds, steps))
        print(
            f"{name:<16}{row['on_device_ms']:>11.1f}{row['streamed_ms']:>10.1f}"
            f"{row['waiting_fraction']:>9.1%}{row['without_thread_ms']:>11.1f}"
            f"{row['without_thread_waiting_fraction']:>9.1%}",
            flush=True,
        )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
