"""Figure 1 of muLO: whether pre-activations change equally at every width, under SP and muP.

    python examples/reproductions/figure_1_coordinates.py --data FOLDER --weights FOLDER
    python examples/reproductions/figure_1_coordinates.py --optimizers adam sgd muon     # an MLP on digits
    python examples/reproductions/figure_1_coordinates.py --model transformer --optimizers adam sgd
    python examples/reproductions/figure_1_coordinates.py --smoke                        # a tiny version

Learned optimizers from `NAME.safetensors` are used under the parametrization of their meta-training: `lo_s` and `lo_m`
under SP, `mulo_s` and `mulo_m` under muP. `mulo` is used under both, as are the others. Prints the exponents of every
layer, and saves a figure of the changes over the width.
"""

import jax
import numpy as np
import optax
from _compare import arguments, program, settings
from _optimizers import digest, load
from _results import finite, kept, write
from _tasks import images, text

import lo_components as loc
from lo_components.parametrization import ORTHOGONALIZED, SCALE_FREE, SP, MuP, RuleByRank

# Learning rates small enough that the first steps are nearly in the linear regime at the narrowest width.
RATES = {"adam": 1e-3, "sgd": 0.1, "muon": 0.02}
NORMS = {"group": loc.nn.GroupNorm, "batch": loc.nn.BatchNorm}
LEARNED = ("mulo", "mulo_m", "lo_m", "mulo_s", "lo_s")
ONLY = {"mulo_m": "muP", "mulo_s": "muP", "lo_m": "SP", "lo_s": "SP"}
OPTIONS = {
    "model": ("mlp", "mlp, cnn, resnet, vit or transformer"),
    "norm": ("group", "norm of the ResNet, group or batch"),
    "widths": ([64, 256, 1024], "widths of the networks"),
    "steps": (10, "training steps; layers saturate later"),
}
SMOKE = dict(optimizers=["adam", "mulo_m"], widths=[16, 32], steps=1)


def make_task(args, parametrization, base_width: int | None):
    """A function from a width to a task, in which only the width varies."""
    common = dict(parametrization=parametrization, base_width=base_width)
    if args.model == "transformer":
        dataset = text(args.data, 32)
        return lambda width: loc.tasks.language_modeling(
            dataset, width=width, depth=2, heads=4, batch_size=16, **common
        )
    dataset = images("fashion_mnist", args.data, args.pixels)
    return {
        "mlp": lambda width: loc.tasks.mlp_classification(dataset, width=width, depth=3, batch_size=64, **common),
        "cnn": lambda width: loc.tasks.cnn_classification(dataset, width=width, batch_size=64, **common),
        "resnet": lambda width: loc.tasks.resnet_classification(
            dataset, width=width, blocks=(1, 1), norm=NORMS[args.norm], batch_size=32, **common
        ),
        "vit": lambda width: loc.tasks.vit_classification(
            dataset, width=width, patch_size=4, depth=2, heads=4, batch_size=32, **common
        ),
    }[args.model]


def make_optimizer(name: str, args):
    if name in LEARNED:
        random = args.smoke and args.weights is None
        return loc.recipes.small_fc_lopt(key=jax.random.key(0)) if random else load(name, args.weights)
    if name == "muon":
        return make_muon()
    # An epsilon far below any gradient, since under muP gradients shrink with the width.
    return optax.adam(RATES["adam"], eps=1e-15) if name == "adam" else optax.sgd(RATES["sgd"])


def make_muon():
    """Orthogonalized updates of matrices; vectors are updated by Adam."""
    labels = lambda params: jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adam", params)  # noqa: E731
    orthogonalized = optax.chain(optax.contrib.scale_by_muon(), optax.scale_by_learning_rate(RATES["muon"]))
    transformations = {"muon": orthogonalized, "adam": optax.adam(RATES["adam"], eps=1e-15)}
    mixed = optax.multi_transform(transformations, labels)
    return loc.OptaxOptimizer(mixed, update_rule=RuleByRank(matrices=ORTHOGONALIZED, vectors=SCALE_FREE))


def check(name: str, title: str, parametrization, args, folder: loc.meta.RunFolder) -> loc.meta.CoordinateCheck:
    """The changes at all widths, from the folder if they are there."""
    # The scales of SGD and Muon grow with the width, so they need a base width at which they are 1.
    base_width = args.widths[0] if name in ("sgd", "muon") else None
    optimizer = make_optimizer(name, args)

    def compute():
        found = loc.meta.coordinate_check(
            optimizer,
            make_task(args, parametrization, base_width),
            widths=args.widths,
            num_steps=args.steps,
            num_seeds=args.seeds,
            key=jax.random.key(0),
        )
        return {"changes": np.asarray(found.changes)}, {"layers": list(found.layers)}

    identity = digest(optimizer) if name in LEARNED else RATES[name]
    arrays, facts = kept(folder.path / f"{title}-{name}.safetensors", identity, compute)
    return loc.meta.CoordinateCheck(tuple(args.widths), tuple(facts["layers"]), arrays["changes"])


def main() -> None:
    names = (*RATES, *LEARNED)
    args = arguments(__doc__ or "", OPTIONS, SMOKE, names=names, optimizers=("adam", *LEARNED[1:]))
    folder = loc.meta.RunFolder.open(args.out, settings(args))
    checks, summary, results = {}, [], {}
    with folder.locked():
        for name in args.optimizers:
            for title, parametrization in (("SP", SP()), ("muP", MuP())):
                if ONLY.get(name, title) != title:
                    continue
                checks[f"{title}, {name}"] = found = check(name, title, parametrization, args, folder)
                print(f"\n{title}, {name}, {args.model}: changes after the last step\n\n{found.table()}", flush=True)
                largest = [found.largest(step) for step in range(args.steps)]
                low, high = found.smallest(), found.largest()
                results[f"{title}, {name}"] = {"largest": [finite(x) for x in largest], "smallest": finite(low)}
                line = "".join(f"{x:8.2f}" for x in largest)
                summary.append(f"{name:<10}{title:<5}{line}   {low:6.2f} to {high:.2f}")
    print(
        f"\n{args.model}: the largest exponent after each step, and the range after the last\n\n" + "\n".join(summary)
    )
    loc.plots.coordinate_checks(checks, args.out / "figure 1.png", title=args.model)
    write(args.out / "results.json", settings(args), {"figure 1": results})
    print(f"\nfigure and results.json: {args.out}")


if __name__ == "__main__":
    program(main)
