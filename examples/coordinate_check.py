"""Check whether training behaves the same at every width, for a model and an optimizer, under SP and muP.

    python examples/coordinate_check.py                                  # an MLP on digits, with Adam
    python examples/coordinate_check.py --model transformer --optimizers adam sgd
    python examples/coordinate_check.py --optimizers mulo --weights quickstart/mulo.safetensors
    python examples/coordinate_check.py --smoke                          # a tiny version

Prints the exponents of every layer and saves a figure of the changes of pre-activations over the width.
"""

import argparse
import sys
from pathlib import Path

import jax
import optax

import lo_components as loc
from lo_components.parametrization import ORTHOGONALIZED, SCALE_FREE, SP, MuP, RuleByRank

# Learning rates small enough that the first steps are nearly in the linear regime at the narrowest width.
RATES = {"adam": 1e-3, "sgd": 0.1, "muon": 0.02, "mulo": None}
NORMS = {"group": loc.nn.GroupNorm, "batch": loc.nn.BatchNorm}
# Few steps: under SP, Adam blows up at once, and later the activations saturate.
STEPS = 3


def make_task(model: str, norm: str, parametrization, base_width: int | None):
    """A function from a width to a task, in which only the width varies."""
    common = dict(parametrization=parametrization, base_width=base_width)
    if model == "transformer":
        dataset = loc.data.python_docs(loc.data.ByteTokenizer(), length=32)
        return lambda width: loc.tasks.language_modeling(
            dataset, width=width, depth=2, heads=4, batch_size=16, **common
        )
    dataset = loc.data.digits()
    return {
        "mlp": lambda width: loc.tasks.mlp_classification(dataset, width=width, depth=3, batch_size=64, **common),
        "cnn": lambda width: loc.tasks.cnn_classification(dataset, width=width, batch_size=64, **common),
        "resnet": lambda width: loc.tasks.resnet_classification(
            dataset, width=width, blocks=(1, 1), norm=NORMS[norm], batch_size=32, **common
        ),
        "vit": lambda width: loc.tasks.vit_classification(
            dataset, width=width, patch_size=4, depth=2, heads=4, batch_size=32, **common
        ),
    }[model]


def make_optimizer(name: str, weights: Path | None):
    if name == "mulo":
        random = loc.recipes.small_fc_lopt(step_mult=1e-2, key=jax.random.key(0))
        return random if weights is None else loc.weights.load(weights)
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


def main(
    model: str = "mlp",
    optimizers: tuple[str, ...] = ("adam",),
    weights: Path | None = None,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    num_seeds: int = 3,
    norm: str = "group",
    out: Path = Path("coordinate_check.png"),
    smoke: bool = False,
) -> None:
    widths = (16, 32) if smoke else tuple(widths)
    steps = 1 if smoke else STEPS
    checks, summary = {}, []
    for optimizer in optimizers:
        # The scales of SGD and Muon grow with the width, so they need a base width at which they are 1.
        base_width = widths[0] if optimizer in ("sgd", "muon") else None
        for name, parametrization in (("SP", SP()), ("muP", MuP())):
            checks[f"{name}, {optimizer}"] = check = loc.meta.coordinate_check(
                make_optimizer(optimizer, weights),
                make_task(model, norm, parametrization, base_width),
                widths=widths,
                num_steps=steps,
                num_seeds=1 if smoke else num_seeds,
                key=jax.random.key(0),
            )
            print(f"\n{name}, {optimizer}, {model}: changes after the last step\n\n{check.table()}", flush=True)
            largest = "  ".join(f"{check.largest(step):6.2f}" for step in range(steps))
            summary.append(f"{optimizer:<10}{name:<5}{largest}   {check.smallest():6.2f} to {check.largest():.2f}")
    print(f"\n{model}: the largest exponent after each step, and the range after the last\n\n" + "\n".join(summary))
    loc.plots.coordinate_checks(checks, out, title=model)
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mlp", "cnn", "resnet", "vit", "transformer"), default="mlp")
    parser.add_argument("--optimizers", choices=tuple(RATES), nargs="+", default=("adam",))
    parser.add_argument("--weights", type=Path, help="meta-trained weights of muLO (default: random)")
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 256, 512))
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--norm", choices=tuple(NORMS), default="group", help="norm of the ResNet (default: group)")
    parser.add_argument("--out", type=Path, default=Path("coordinate_check.png"))
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
