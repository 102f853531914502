"""Measure the bytes that each worker sends in a round, from compiled programs on one virtual CPU device per worker.

    python benchmarks/communication.py

The parameters are those of the LAgg-A paper's network for Fashion-MNIST, 784-128-128-10. Bytes are counted for a ring.
Prints a table and writes `benchmarks/results/communication.json`.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
from collectives import bytes_sent, collectives
from jax.sharding import NamedSharding, PartitionSpec
from report import RESULTS, write

import lo_components as loc
from lo_components.sharding import make_mesh, sliced

SHAPES = {"0/weight": (128, 784), "0/bias": (128,), "1/weight": (128, 128), "1/bias": (128,), "2/weight": (10, 128)}
SHAPES["2/bias"] = (10,)


def exchanged(deltas, mesh, how: str):
    if how == "slices":
        return sliced(deltas, mesh)
    if how == "all-gather":
        return jax.lax.with_sharding_constraint(deltas, NamedSharding(mesh, PartitionSpec()))
    return deltas


def measure(aggregator, workers: int, how: str) -> list[dict]:
    """The collective operations in the aggregation of one round."""
    mesh = make_mesh(1, workers=workers, devices=jax.devices()[:workers])
    spread, everywhere = NamedSharding(mesh, PartitionSpec("workers")), NamedSharding(mesh, PartitionSpec())
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere) for name, shape in SHAPES.items()}
    deltas = {
        name: jax.ShapeDtypeStruct((workers, *shape), jnp.float32, sharding=spread) for name, shape in SHAPES.items()
    }

    def rounds(deltas, params):
        state = aggregator.init(jax.tree.map(lambda p: jnp.zeros(p.shape), params))
        update, _ = aggregator.aggregate(exchanged(deltas, mesh, how), state, params)
        return jax.lax.with_sharding_constraint(jax.tree.map(jnp.add, params, update), everywhere)

    return collectives(jax.jit(rounds).lower(deltas, params).compile().as_text())


def main(out: Path) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    size = 4 * sum(jnp.zeros(shape).size for shape in SHAPES.values())
    key = jax.random.key(0)
    rows = []
    print(f"{size / 1e3:.0f} kB of parameters\n{'':<22}{'K':>3}{'sent':>10}{'of a sum':>10}   operations")
    for workers in (2, 4, 8):
        ring = 2 * size * (workers - 1) / workers
        lopt, lagg = loc.recipes.lopt_a(hidden_size=4, key=key), loc.recipes.lagg_a(workers, hidden_size=4, key=key)
        for name, aggregator, how in (
            ("mean", loc.aggregators.Mean(), "sum"),
            ("LOpt-A", lopt, "sum"),
            ("LOpt-A, slices", lopt, "slices"),
            ("LAgg-A, all-gather", lagg, "all-gather"),
            ("LAgg-A, slices", lagg, "slices"),
        ):
            found = measure(aggregator, workers, how)
            sent = bytes_sent(found, workers)
            operations = dict(Counter(c["kind"] for c in found))
            rows.append({"aggregator": name, "workers": workers, "sent": sent, "ring": ring, "operations": operations})
            shown = ", ".join(f"{n} {kind}" for kind, n in sorted(operations.items()))
            print(f"{name:<22}{workers:>3}{sent / 1e3:>7.0f} kB{sent / ring:>10.2f}   {shown}", flush=True)
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "communication.json")
    main(parser.parse_args().out)
