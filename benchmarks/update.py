"""Time one update of a 784-1024-1024-10 MLP by learned optimizers, by Adam and by Muon, in one process.

Prints a table and writes `benchmarks/results/update.json`. Figures are medians of interleaved calls; on a noisy machine
quote the ratios. Run: `python benchmarks/update.py`.
"""

import argparse
from pathlib import Path

import optax
from models import mlp
from report import RESULTS, write
from timed_update import TimedUpdate, adam, row, small_fc_lopt, time_in_turn, with_length

import lo_components as loc

RESULT = RESULTS / "update.json"


def main(rounds: int = 12, quick: bool = False, out: Path = RESULT):
    heads = ((4, 2),) if quick else ((4, 2), (32, 1), (32, 2))
    transformations = {f"small_fc_lopt {size}x{layers}": small_fc_lopt(size, layers) for size, layers in heads}
    transformations = {"optax.adam": adam(), **transformations}
    if not quick:
        transformations["optax.contrib.muon"] = optax.contrib.muon(1e-3)
        transformations["rms_muon"] = with_length(loc.recipes.rms_muon(4e-3))
        transformations["residual_muon"] = with_length(loc.pretrained("residual_muon"))
    contenders = {name: TimedUpdate(transformation, mlp()) for name, transformation in transformations.items()}
    time_in_turn(contenders.values(), rounds=5 if quick else rounds, calls=5)
    rows = []
    print(f"{'optimizer':<20}{'ns/param':>10}{'x adam':>8}{'temp B/param':>14}{'trace s':>9}{'compile s':>11}")
    for name, contender in contenders.items():
        rows.append({"optimizer": name, **(r := row(contender, contenders["optax.adam"]))})
        print(
            f"{name:<20}{r['ns_per_param']:>10.2f}{r['ratio_to_adam']:>8.1f}{r['temp_bytes_per_param']:>14.1f}"
            f"{r['trace_seconds']:>9.2f}{r['compile_seconds']:>11.2f}"
        )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="4x2 only, five rounds")
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
