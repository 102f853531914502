"""Time updates of models of many tensors by learned optimizers and by `optax.adam`, in one process.

The models are transformers of width 64 with one embedding and 16 tensors in each layer (193 tensors in 12 layers), and
48 matrices of distinct shapes. Prints a table and writes `benchmarks/results/layers.json`: seconds of tracing and of
compiling, processor seconds of both, and nanoseconds per parameter as medians of interleaved calls. Each program is
traced and compiled once, so compare these figures over several processes. Run: `python benchmarks/layers.py`.
"""

import argparse
from pathlib import Path

from models import distinct, transformer
from report import RESULTS, write
from timed_update import TimedUpdate, adam, row, small_fc_lopt, time_in_turn

RESULT = RESULTS / "layers.json"


def main(layers: list[int], rounds: int = 12, quick: bool = False, out: Path = RESULT):
    models = {f"{n} layers": transformer(n) for n in ([2] if quick else layers)}
    models |= {} if quick else {"distinct shapes": distinct()}
    transformations = {"optax.adam": adam(), "small_fc_lopt 4x2": small_fc_lopt(4, 2)}
    transformations |= {} if quick else {"small_fc_lopt 32x2": small_fc_lopt(32, 2)}
    rows = []
    print(
        f"{'model':<17}{'tensors':>8}  {'optimizer':<20}{'trace s':>9}{'compile s':>11}{'CPU s':>8}{'ns/param':>10}"
        f"{'x adam':>8}"
    )
    for model, shapes in models.items():
        contenders = {name: TimedUpdate(transformation, shapes) for name, transformation in transformations.items()}
        time_in_turn(contenders.values(), rounds=5 if quick else rounds, calls=5)
        for name, contender in contenders.items():
            r = row(contender, contenders["optax.adam"])
            rows.append({"model": model, "tensors": len(shapes), "optimizer": name, **r})
            print(
                f"{model:<17}{len(shapes):>8}  {name:<20}{r['trace_seconds']:>9.2f}{r['compile_seconds']:>11.2f}"
                f"{r['cpu_seconds']:>8.1f}{r['ns_per_param']:>10.2f}{r['ratio_to_adam']:>8.1f}",
                flush=True,
            )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a transformer of two layers, 4x2, five rounds")
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
