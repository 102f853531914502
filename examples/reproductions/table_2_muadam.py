"""Table 2 of muLO: muAdam tuned; and whether the best learning rate is the same at every width, under muP and SP.

    python examples/reproductions/table_2_muadam.py --data FOLDER
    python examples/reproductions/table_2_muadam.py --smoke            # a tiny version

One compiled call searches a grid over the learning rate and three multipliers under muP (500 configurations, the
paper's protocol) at the width of meta-training (AdamS), and one at each of several widths (AdamM). Then only the
learning rate is swept, at every width, under muP with the first optimizer's multipliers and under SP. The paper's
scale:

    ... --meta-width 128 --meta-widths 128 512 1024 --meta-depth 3 --batch-size 4096 --pixels 32 --widths 128 2048 8192
        --steps 5000
"""

import jax
import numpy as np
from _compare import arguments, program, settings
from _optimizers import sweep_muadam, tuned_muadam, with_multipliers
from _results import finite, kept, write
from _tasks import images, mlp

import lo_components as loc
from lo_components.parametrization import SP, MuP

MULTIPLIERS = ("input_mult", "output_mult", "hidden_mult")
OPTIONS = {
    "widths": ([32, 256, 1024], "widths at which the learning rate is swept"),
    "steps": (500, "steps of the sweeps"),
    "rates": ([10.0 ** (-4.5 + 0.5 * i) for i in range(10)], "learning rates of the sweeps"),
}
SMOKE = dict(optimizers=["adam_s", "adam_m"], widths=[4, 8], steps=3, rates=[1e-3, 1e-2])


def main() -> None:
    args = arguments(__doc__ or "", OPTIONS, SMOKE, names=("adam_s", "adam_m"), optimizers=("adam_s", "adam_m"))
    folder = loc.meta.RunFolder.open(args.out, settings(args))
    of_names = {"adam_s": [args.meta_width], "adam_m": args.meta_widths}
    tuned = {name: tuned_muadam(of_names[name], args) for name in args.optimizers}
    print(f"{'':<8}{'rate':>10}" + "".join(f"{name:>14}" for name in MULTIPLIERS) + f"{'loss':>10}")
    for name, found in tuned.items():
        cells = "".join(f"{found[key]:>14g}" for key in MULTIPLIERS)
        print(f"{name:<8}{found['rate']:>10g}{cells}{found['loss']:>10.4f}", flush=True)

    dataset, panels, transfer = images("fashion_mnist", args.data, args.pixels), {}, {}
    multipliers = [tuned[args.optimizers[0]][key] for key in MULTIPLIERS]
    print(f"\n{'':<12}{'width':>6}{'best rate':>11}   loss at each rate, median of {args.seeds} seeds")
    print(" " * 29 + "   " + "".join(f"{rate:>9.1e}" for rate in args.rates))
    with folder.locked():
        for name, parametrization, factors in (("SP, Adam", SP(), []), ("muP, muAdam", MuP(), multipliers)):
            panels[name], transfer[name] = {}, {}
            for width in args.widths:

                def compute(width=width, parametrization=parametrization, factors=factors):
                    task = mlp(dataset, width, args.meta_depth, args.batch_size)(parametrization=parametrization)
                    task = with_multipliers(task, *factors) if factors else task
                    rates, at_once = [(rate,) for rate in args.rates], 10 if width <= 256 else 1
                    found = sweep_muadam(task, rates, args.steps, args.seeds, at_once, jax.random.key(0))
                    return {"final": found.evaluations.final()}, {}

                path = folder.path / f"{name.split()[-1]}-{width}.safetensors"
                panels[name][width] = losses = kept(path, factors, compute)[0]["final"]
                middle = np.median(losses, axis=1)
                transfer[name][width] = [finite(x) for x in middle]
                best = args.rates[int(np.argmin(np.where(np.isfinite(middle), middle, np.inf)))]
                print(f"{name:<12}{width:>6}{best:>11.1e}   " + "".join(f"{x:>9.4f}" for x in middle), flush=True)
    title = f"{args.steps} steps of Adam; dots mark the best learning rate"
    loc.plots.transfer(panels, np.asarray(args.rates), args.out / "transfer.png", title=title)
    write(args.out / "results.json", settings(args), {"table 2": tuned, "transfer": transfer})
    print(f"\nfigure and results.json: {args.out}")


if __name__ == "__main__":
    program(main)
