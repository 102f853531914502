"""Meta-train the pretrained aggregator `outer_residual_muon`: `residual_muon` as the outer optimizer of local SGD.

    python examples/outer_residual_muon.py --data FOLDER   # 20 minutes on one CPU core
    python examples/outer_residual_muon.py --smoke         # a tiny version

FOLDER has `fashion_mnist` (four idx files) and `cifar10` (`cifar-10-batches-py`); without it, digits stand in for both.
It starts from the pretrained `residual_muon`. Writes `outer_residual_muon.safetensors` and its card to the folder
`--out`, beside a folder with the log and a figure of the losses on the tasks of meta-training. If it is interrupted,
run it again to continue.
"""

import equinox as eqx
import jax
import numpy as np
import optax
from residual_muon import BASE, INPUTS, images, kept_part, meta_train, mlp, run

import lo_components as loc
from lo_components.aggregators import OuterOptimizer, SlowMo
from lo_components.schedules import WarmUpAndDecay
from lo_components.unroll import LocalRound

RATE, LOCAL_RATE = 1e-2, 0.3
WORKERS, LOCAL_STEPS, BATCH_SIZE = 8, 4, 128


def main(args) -> None:
    tasks = {
        "Fashion-MNIST, 8x8, MLP 32-32": mlp(images("fashion_mnist", args.data), 32, 2, BATCH_SIZE),
        "CIFAR-10, gray, 8x8, MLP 64": mlp(images("cifar10", args.data), 64, 1, BATCH_SIZE),
    }
    rounds = LocalRound(WORKERS, LOCAL_STEPS, optax.sgd(LOCAL_RATE))
    folder = args.out / "outer_residual_muon"
    schedule = WarmUpAndDecay(RATE, reference_steps=args.horizon)
    start = OuterOptimizer(eqx.tree_at(lambda x: x.schedule, loc.pretrained("residual_muon"), schedule))
    learner = meta_train(start, tasks, folder, args, inner_step=rounds, key=jax.random.key(args.seed))
    # As for residual_muon, half of what was learned is kept. Here, all of it is about as good.
    everything, learner = learner, kept_part(start, learner, args.kept)
    card = loc.Card(
        name="outer_residual_muon",
        summary="residual_muon as the outer optimizer of local SGD, for any number of workers: sees the mean delta",
        parametrization=BASE["parametrization"],
        base_width=BASE["base_width"],
        base_in_size=INPUTS,
        learning_rate=RATE,
        needs=("num_steps",),
        tasks=f"{'; '.join(tasks)}; rounds of {WORKERS} workers with {LOCAL_STEPS} steps of SGD (rate {LOCAL_RATE}, "
        f"batches of {BATCH_SIZE})",
        widths=(32, 64),
        horizon=f"{args.shortest} to {args.horizon:,} rounds, log-uniform",
        estimator=f"ESSingle, {args.pairs} pairs for each task, std {args.std}, windows of {args.window} rounds, from "
        f"the pretrained residual_muon; {args.kept} of the learned change is kept",
        seed=args.seed,
        command=f"python examples/outer_residual_muon.py --data FOLDER --seed {args.seed}",
        source="Muon (Jordan et al., 2024) as a server optimizer (Reddi et al., arXiv 2003.00295); this library",
    )
    print(loc.Pretrained(args.out).save(learner, card, runs=[folder]))
    compared = {
        "outer_residual_muon": learner,
        "all of the change kept": everything,
        "before meta-training": start,
        "rms_muon, nothing learned": OuterOptimizer(loc.recipes.rms_muon(RATE, reference_steps=args.horizon)),
        "SlowMo": SlowMo(0.8, 1.25),  # tuned on the first task
    }
    tasks["validation: Fashion-MNIST, 16x16, MLP 64-64"] = mlp(
        images("fashion_mnist", args.data, 16), 64, 2, BATCH_SIZE
    )
    panels = {}
    for name, task in tasks.items():
        panels[name] = {}
        for label, aggregator in compared.items():
            run = dict(num_steps=args.horizon, num_seeds=args.seeds, inner_step=rounds, key=jax.random.key(7))
            found = loc.meta.evaluate(aggregator, task, **run)
            panels[name][label] = np.asarray(found.losses)
            print(f"{name}: {label:<28}{np.mean(found.final()):.4f}", flush=True)
    loc.plots.training_curves(panels, args.out / "outer_residual_muon.svg", unit="round")


if __name__ == "__main__":
    run(main, __doc__, meta_steps=800, pairs=3, shortest=100)
