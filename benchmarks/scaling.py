"""Measure the communication, computation and memory per device of a particle-parallel meta-step.

Weak scaling: digits, batch 64, one hidden layer of 32, small_fc_lopt 4 x 2, PES with truncation window 10 and 4 pairs
per device. The devices are virtual ones on this machine's processor, with a separate process for each number of
devices. Prints a table and writes `benchmarks/results/scaling.json`. Run: `python benchmarks/scaling.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS_PER_DEVICE, WINDOW = 4, 10


def measure(devices: int, rounds: int) -> dict:
    """One row of the table; call it in a process that has this many devices."""
    import equinox as eqx
    import jax
    from collectives import collectives

    import lo_components as loc

    mesh = loc.sharding.make_mesh()
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(20, 100), WINDOW)
    pes = loc.estimators.PES(unroll, num_pairs=PAIRS_PER_DEVICE * devices)
    estimator = loc.sharding.ParticleSharded(pes, mesh)
    optimizer = loc.meta.meta_optimizer(1000)
    learner = loc.recipes.small_fc_lopt(hidden_size=4, key=jax.random.key(0))
    state = eqx.filter_jit(loc.meta.init_meta_state)(learner, estimator, optimizer, key=jax.random.key(1))
    state = loc.sharding.shard_state(state, mesh)

    begin = time.perf_counter()
    step = eqx.filter_jit(loc.meta.meta_step).lower(state, estimator, optimizer).compile()
    compile_seconds = time.perf_counter() - begin
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        state, metrics = step(state, estimator, optimizer)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begin)
    found = collectives(step.compiled.as_text())
    memory = step.compiled.memory_analysis()
    theta = jax.tree.leaves(eqx.filter(learner, eqx.is_inexact_array))
    return {
        "devices": devices,
        "pairs": PAIRS_PER_DEVICE * devices,
        "theta_bytes": sum(x.nbytes for x in theta),
        "collectives": len(found),
        "kinds": sorted({c["kind"] for c in found}),
        "collective_bytes": sum(c["bytes"] for c in found),
        "state_bytes_per_device": memory.output_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "meta_steps_per_second": 1 / statistics.median(seconds[1:]),
        "fastest_meta_steps_per_second": 1 / min(seconds[1:]),
        "compile_seconds": compile_seconds,
    }


def measured_apart(devices: int, rounds: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, __file__, "--rounds", str(rounds), "--worker", str(devices)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def main(devices: list[int], rounds: int, out: Path | None):
    from report import RESULTS, write

    rows = []
    for number in devices:
        rows.append(row := measured_apart(number, rounds))
        inner = 2 * row["pairs"] * WINDOW * row["meta_steps_per_second"]
        print(
            f"{number} devices, {row['pairs']} pairs: {row['collectives']} {row['kinds']} of {row['collective_bytes']} "
            f"bytes (theta {row['theta_bytes']}), per device {row['state_bytes_per_device']} bytes of state and "
            f"{row['temporary_bytes_per_device']} of temporaries, {row['meta_steps_per_second']:.2f} meta-steps/s "
            f"(fastest {row['fastest_meta_steps_per_second']:.2f}), {inner:,.0f} inner steps/s, "
            f"compiled in {row['compile_seconds']:.0f} s",
            flush=True,
        )
    write(out or RESULTS / "scaling.json", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    worker = arguments.pop("worker")
    if worker:
        print(json.dumps(measure(worker, arguments["rounds"])))
    else:
        main(**arguments)
