"""Measure the overhead of the meta-training loop: progress bar, log, and checkpoints in the background.

Digits, batch 64, one hidden layer of 32, 8 pairs, head 4 x 2, truncation window 50. The loop is compared with bare
meta-steps, which are dispatched one after another and waited for at the end. Prints milliseconds per meta-step and the
relative overhead, and writes `benchmarks/results/loop.json`. Run: `python benchmarks/loop.py`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
from report import RESULTS, write

import lo_components as loc

RESULT = RESULTS / "loop.json"
KEY = jax.random.key(0)


def main(steps: int = 100, rounds: int = 5, out: Path = RESULT):
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(100, 1000), 50)
    learner = loc.recipes.small_fc_lopt(hidden_size=4, hidden_layers=2, key=KEY)
    estimator, optimizer = loc.estimators.PES(unroll, num_pairs=8), loc.meta.meta_optimizer(1000)
    state = eqx.filter_jit(loc.meta.init_meta_state)(learner, estimator, optimizer, key=KEY)
    step = eqx.filter_jit(lambda estimator, state: loc.meta.meta_step(state, estimator, optimizer))

    def bare() -> float:
        after = step(estimator, state)[0]
        jax.block_until_ready(after)
        begin = time.perf_counter()
        for _ in range(steps):
            after, _ = step(estimator, after)
        jax.block_until_ready(after)
        return (time.perf_counter() - begin) / steps

    def in_the_loop(every: int) -> float:
        """Seconds per step, from two runs of which one is longer by `steps`, so that compilation cancels."""
        seconds = []
        for num_steps in (10, 10 + steps):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                checkpoints = loc.meta.Checkpoints(folder, {}, every=every)
                loc.meta.meta_train(
                    learner, estimator, num_steps=num_steps, optimizer=optimizer, checkpoints=checkpoints, key=KEY
                )
                seconds.append(time.perf_counter() - begin)
        return (seconds[1] - seconds[0]) / steps

    in_the_loop(10)
    rows = []
    for every in (1000, 10):
        pairs = [(bare(), in_the_loop(every)) for _ in range(rounds)]
        overhead = statistics.median(loop / alone - 1 for alone, loop in pairs)
        row = {
            "checkpoint_every": every,
            "bare_ms": 1e3 * statistics.median(alone for alone, _ in pairs),
            "loop_ms": 1e3 * statistics.median(loop for _, loop in pairs),
            "overhead": overhead,
        }
        rows.append(row)
        print(
            f"a checkpoint every {every}: bare {row['bare_ms']:.1f} ms, in the loop {row['loop_ms']:.1f} ms, "
            f"{overhead:+.1%}",
            flush=True,
        )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
