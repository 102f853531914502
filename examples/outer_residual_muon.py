"""Meta-train the pretrained aggregator `outer_residual_muon`: `residual_muon` as the outer optimizer of local SGD.

    python examples/outer_residual_muon.py --data FOLDER   # 20 minutes on one CPU core
    python examples/outer_residual_muon.py --smoke         # a tiny version

FOLDER has `fashion_mnist` (four idx files) and `cifar10` (`cifar-10-batches-py`); without it, digits stand in for both.
It starts from the pretrained `residual_muon`. Writes `outer_residual_muon.safetensors` and its card to the folder
`--out`, beside a folder with the log and a figure of the losses on the tasks of meta-training. If it is interrupted,
run it again to continue.
"""

import argparse
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from residual_muon import BASE, INPUTS, images, kept_part, mlp

import lo_components as loc
from lo_components.aggregators import OuterOptimizer, SlowMo
from lo_components.estimators import ESSingle, Mixture
from lo_components.schedules import WarmUpAndDecay
from lo_components.unroll import LocalRound, LogLoss, LogUniformHorizon, TruncatedUnroll

RATE, LOCAL_RATE = 1e-2, 0.3
WORKERS, LOCAL_STEPS, BATCH_SIZE = 8, 4, 128


def main(args) -> None:
    tasks = {
        "Fashion-MNIST, 8x8, MLP 32-32": mlp(images("fashion_mnist", args.data), 32, 2, BATCH_SIZE),
        "CIFAR-10, gray, 8x8, MLP 64": mlp(images("cifar10", args.data), 64, 1, BATCH_SIZE),
    }
    rounds = LocalRound(WORKERS, LOCAL_STEPS, optax.sgd(LOCAL_RATE))

    def estimator(task):
        horizon = LogUniformHorizon(args.shortest, args.horizon)
        unroll = TruncatedUnroll(task, horizon, args.window, meta_loss=LogLoss(args.final), inner_step=rounds)
        return ESSingle(unroll, num_pairs=args.pairs, std=args.std)

    settings = {
        name: value for name, value in vars(args).items() if name not in ("data", "out", "kept", "seeds", "smoke")
    }
    folder = args.out / "outer_residual_muon"
    schedule = WarmUpAndDecay(RATE, reference_steps=args.horizon)
    start = OuterOptimizer(eqx.tree_at(lambda x: x.schedule, loc.pretrained("residual_muon"), schedule))
    learner = loc.meta.meta_train(
        start,
        Mixture([estimator(task) for task in tasks.values()], names=list(tasks)),
        num_steps=args.meta_steps,
        optimizer=loc.meta.meta_optimizer(args.meta_steps, peak=args.rate, end=0.0),
        checkpoints=loc.meta.Checkpoints(folder, settings),
        log_every=25,
        progress="outer_residual_muon",
        key=jax.random.key(args.seed),
    )
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with `fashion_mnist` and `cifar10`")
    parser.add_argument("--out", type=Path, default=Path("pretraining"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--meta-steps", type=int, default=800)
    parser.add_argument("--pairs", type=int, default=3, help="antithetic pairs for each task")
    parser.add_argument("--shortest", type=int, default=100, help="the shortest horizon, in rounds")
    parser.add_argument("--horizon", type=int, default=1000, help="the longest horizon, in rounds")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--std", type=float, default=0.07, help="standard deviation of the noise")
    parser.add_argument("--rate", type=float, default=2e-2, help="peak meta-learning rate")
    parser.add_argument("--final", type=float, default=0.7, help="weight of the final loss in the meta-loss")
    parser.add_argument("--kept", type=float, default=0.5, help="fraction of the learned change that is kept")
    parser.add_argument("--seeds", type=int, default=3, help="runs for the figure")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(meta_steps=2, pairs=1, shortest=4, horizon=4, window=2, seeds=1)
    try:
        main(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to continue from the last checkpoint")
