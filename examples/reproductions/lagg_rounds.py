"""Rounds of LAgg-A and LOpt-A against tuned baselines: as in meta-training, and with other H, K, networks and data.

    python examples/reproductions/lagg_rounds.py --data FOLDER --weights FOLDER
    python examples/reproductions/lagg_rounds.py --data FOLDER --weights FOLDER --panels "H = 4" "H = 16"
    python examples/reproductions/lagg_rounds.py --smoke                      # a tiny version

A small version of the experiments of arXiv 2312.02204, in which K = 8 workers take H = 4 local steps. Baselines are
tuned on each panel, by the mean loss over the last 20 rounds of one seed: on the paper's grid if the panel is as in
meta-training, and on a coarse one elsewhere. Aggregators are meta-trained by `meta_train.py`. Beyond the paper,
`outer_residual_muon` of the package is meta-trained by `../outer_residual_muon.py`. It is compared with what its
meta-training starts from, and with the outer Muon, of which nothing is learned.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from _compare import arguments, in_json, program, settings, train_all
from _optimizers import Optimizer, digest
from _results import finite, middle, shown, summary, write
from _rounds import BASELINES, LOCAL_STEPS, WIDTH, WORKERS, baselines, learned, local_round, meta_trained_mlp
from _tasks import Task, among, images

import lo_components as loc
from lo_components.parametrization import SP, MuP

LEARNED = {
    "lagg_a": "LAgg-A",
    "lopt_a": "LOpt-A",
    "pooled_lagg_a": "pooled LAgg-A",
    "outer_residual_muon": "outer residual_muon",
    "residual_muon": "residual_muon, not meta-trained further",
}
ELSEWHERE = ("local SGD", "SlowMo", "outer Nesterov", "outer Muon")  # baselines that are tuned on every panel
SAME = "H = 4"
# How a panel differs from meta-training.
PANELS = {
    SAME: {},
    "H = 8": {"steps": 8},
    "H = 16": {"steps": 16},
    "K = 4": {"workers": 4},
    "K = 16": {"workers": 16},
    "width 128": {"width": 128, "mup": True},
    "CNN": {"model": "cnn"},
    "CIFAR-10": {"data": "cifar10", "mup": True},
}
OPTIONS = {
    "panels": (list(PANELS), f"of {', '.join(map(repr, PANELS))}"),
    "rounds": (1000, "rounds as in meta-training"),
    "other_rounds": (300, "rounds of the other panels"),
    "cifar_rounds": (100, "rounds on CIFAR-10"),
    "local_batch": (128, "examples of a local step"),
}
SMOKE = dict(panels=[SAME, "width 128"], rounds=20, other_rounds=20, local_batch=4, optimizers=["lopt_a"])


def panel(title: str, args) -> tuple[Task, dict[str, Optimizer]]:
    """The task of a panel, and everything that trains it, by name."""
    differing, same = PANELS[title], title == SAME
    workers, steps = differing.get("workers", WORKERS), differing.get("steps", LOCAL_STEPS)
    width, batch = 4 if args.smoke else differing.get("width", WIDTH), args.local_batch
    squares = images("fashion_mnist", args.data, 8)
    if differing.get("model") == "cnn":
        make = functools.partial(loc.tasks.cnn_classification, squares, width=16)
    else:
        make = meta_trained_mlp(images("cifar10", args.data, 32) if "data" in differing else squares, width)
    found = {}
    for name in args.optimizers:
        if name == "lagg_a" and workers != WORKERS:
            continue  # it has one input for each worker
        if args.smoke:
            learner, round_ = loc.recipes.lopt_a(hidden_size=2, key=jax.random.key(0)), local_round(workers, steps, 0.5)
        else:
            learner, round_ = learned(name, workers, steps, args.weights)
        for suffix, of in {"": SP(), ", muP": MuP(bias_std=0.0)}.items():
            if of == SP() or differing.get("mup"):
                identity = [digest(learner), workers, steps]
                options = {"parametrization": of, "batch_size": batch}
                found[LEARNED[name] + suffix] = Optimizer(lambda _, x=learner, y=round_: (x, y), identity, options)
    names = ("local SGD", "Adam") if args.smoke else BASELINES if same else ELSEWHERE
    rounds = args.rounds if same else args.cifar_rounds if "data" in differing else args.other_rounds
    return Task(make, rounds), found | baselines(names, workers, steps, args.smoke or not same, batch)


def rounds_to(results) -> dict[str, dict[str, list]]:
    """By baseline and name: the number of rounds of each seed to the baseline's median final loss."""

    def rounds(losses, loss: float):
        evaluation = loc.meta.Evaluation(jnp.asarray(losses), jnp.isfinite(losses).all(1))
        # Its own rounding must not keep a baseline from its loss.
        return [finite(x) for x in np.asarray(evaluation.steps_to(loss * (1 + 1e-6)))]

    finals = {name: np.median(loc.meta.Evaluation(jnp.asarray(x), None).final()) for name, (x, _) in results.items()}
    targets = [name for name in results if name in BASELINES and np.isfinite(finals[name])]
    return {
        target: {name: rounds(losses, float(finals[target])) for name, (losses, _) in results.items()}
        for target in targets
    }


def table(title: str, results, counts) -> str:
    """Median rounds to the final losses of baselines, and the final loss."""
    lines = [f"\n{title}: rounds to the final loss of baselines, medians", f"{'':<34}"]
    lines[1] += "".join(f"{target:>24}" for target in counts) + f"{'final loss':>12}"
    for name, (losses, facts) in results.items():
        cells = "".join(f"{shown(middle(counts[target][name]), '.0f', 'never'):>24}" for target in counts)
        chosen = ", ".join(f"{x:g}" for x in facts.get("configuration", ()))
        lines.append(f"{name:<34}{cells}{shown(middle(summary(losses)['final'])):>12}  {chosen}")
    return "\n".join(lines)


def main() -> None:
    args = arguments(__doc__ or "", OPTIONS, SMOKE, names=tuple(LEARNED), optimizers=tuple(LEARNED))
    folder = loc.meta.RunFolder.open(args.out, settings(args))
    panels = {title: panel(title, args) for title in among(PANELS, args.panels)}
    found, results, curves = train_all(folder, panels, seeds=args.seeds, seed=args.seed, at_once=args.at_once), {}, {}
    for title, (task, _) in panels.items():
        counts = rounds_to(found[title])
        results[title] = in_json(task, found[title]) | {"rounds_to": counts}
        print(table(title, found[title], counts))
        # One line per learner in the figure; if there are two, the one under muP.
        losses = {name: x for name, (x, _) in found[title].items()}
        curves[title] = {n: losses.get(f"{n}, muP", x) for n, x in losses.items() if not n.endswith(", muP")}
    loc.plots.training_curves(curves, args.out / "rounds.png", title="Loss over communication rounds", unit="round")
    write(args.out / "results.json", settings(args), results)
    print(f"\nfigure and results.json: {args.out}")


if __name__ == "__main__":
    program(main)
