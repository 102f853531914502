"""Train a wide network with a pretrained optimizer and with AdamW, in a plain optax loop.

    python examples/quickstart.py                 # residual_muon, of the package, on scikit-learn's digits
    python examples/quickstart.py --data FOLDER   # on Fashion-MNIST (its four idx files), pooled to 8x8
    python examples/quickstart.py --meta-train    # meta-train an optimizer first, in some minutes, and use that
    python examples/quickstart.py --smoke         # a tiny version

Prints a table, and saves `quickstart.png` in the output folder. If meta-training is interrupted, run it again to
continue.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import lo_components as loc
from lo_components.parametrization import SP, MuP

RATES = (3e-2, 1e-2, 3e-3, 1e-3)  # of AdamW
META_WIDTH, BATCH_SIZE = 32, 64


def read(folder: Path | None):
    """Digits, or Fashion-MNIST averaged to 8x8 pixels."""
    if folder is None:
        return loc.data.digits()

    splits = loc.data.fashion_mnist(folder).splits
    arrays = {
        name: (np.round(loc.data.pooled(split.images, 8)).astype(np.uint8), np.asarray(split.labels))
        for name, split in splits.items()
    }
    return loc.data.image_dataset(arrays, num_classes=10, name="Fashion-MNIST, 8x8")


def make_task(dataset, width: int, parametrization, **base):
    return loc.tasks.mlp_classification(
        dataset,
        width=width,
        depth=2,
        parametrization=parametrization,
        batch_size=BATCH_SIZE,
        **base,
    )


def train(task, optimizer, steps: int, seeds: int, *, key):
    """Losses `[seeds, steps]` of plain optax loops, and the mean loss and accuracy on held-out images at the end."""
    if not isinstance(optimizer, optax.GradientTransformation):
        optimizer = loc.as_optax(loc.unroll.scaled_for(task, optimizer, task.init(key=key)))
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params, state, key):
        loss, grads = jax.value_and_grad(task.loss)(params, task.batch(key=key), key=key)
        updates, state = optimizer.update(grads, state, params, value=loss, num_steps=steps)
        return optax.apply_updates(params, updates), state, loss

    losses, metrics = np.zeros((seeds, steps)), []
    for seed, seed_key in enumerate(jax.random.split(key, seeds)):
        init_key, *step_keys = jax.random.split(seed_key, steps + 1)
        params = task.init(key=init_key)
        state = optimizer.init(params)
        for i, step_key in enumerate(step_keys):
            params, state, losses[seed, i] = step(params, state, step_key)
        metrics.append(task.metrics(params, split="test", key=init_key))
    return losses, *(np.mean([found[name] for found in metrics]) for name in ("loss", "accuracy"))


def compare(name: str, folder: loc.Pretrained, dataset, width: int, steps: int, seeds: int, seed: int):
    """Losses `[seeds, steps]` of the learned optimizer and of AdamW at its best rate; prints a table of all runs."""
    card = folder.card(name)
    base = dict(base_width=card.base_width, base_in_size=card.base_in_size)
    runs = {name: (make_task(dataset, width, card.parametrization, **base), folder(name))}
    for rate in RATES:
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps)
        runs[f"AdamW, {rate:g}"] = (make_task(dataset, width, SP()), optax.adamw(schedule))
    print(f"\n{'':<16}{'training loss':>16}{'held-out loss':>16}{'accuracy':>12}")
    curves, finals = {}, {}
    for label, (task, optimizer) in runs.items():
        curves[label], loss, accuracy = train(task, optimizer, steps, seeds, key=jax.random.key(seed))
        finals[label] = curves[label][:, -20:].mean()
        print(f"{label:<16}{finals[label]:>16.4f}{loss:>16.4f}{accuracy:>12.4f}", flush=True)
    best = min(list(runs)[1:], key=finals.__getitem__)
    return {name: curves[name], f"{best} (best of {len(RATES)})": curves[best]}


def meta_train(
    dataset,
    data: str,
    out: Path,
    seed: int,
    command: str,
    meta_steps: int = 5000,
    pairs: int = 4,
    window: int = 50,
    longest: int = 1000,
):
    """Meta-train muLO on a narrow network, and save it with its card in `out`."""
    unroll = loc.unroll.TruncatedUnroll(
        make_task(dataset, META_WIDTH, MuP()), loc.unroll.LogUniformHorizon(longest // 10, longest), window
    )
    init_key, run_key = jax.random.split(jax.random.key(seed))
    run = out / "mulo-run"
    learner = loc.meta.meta_train(
        loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=init_key),
        loc.estimators.PES(unroll, num_pairs=pairs, std=0.05),
        num_steps=meta_steps,
        # The runs of the papers are longer; here the rate is higher, and it decays to 0.
        optimizer=loc.meta.meta_optimizer(meta_steps, peak=1e-2, end=0.0),
        checkpoints=loc.meta.Checkpoints(run, {"data": data, "seed": seed}),
        progress="meta-training",
        key=run_key,
    )
    card = loc.Card(
        name="mulo",
        summary="muLO with a head of 4 x 2 units: small_fc_lopt, meta-trained under muP",
        parametrization=MuP(),
        base_width=None,
        tasks=f"{data}, MLP with two hidden layers, batches of {BATCH_SIZE}",
        widths=(META_WIDTH,),
        horizon=f"{longest // 10} to {longest:,} steps, log-uniform",
        estimator=f"PES, {pairs} pairs, std 0.05, windows of {window} steps",
        seed=seed,
        command=command,
        source="Thérien et al., muLO (arXiv 2406.00153)",
    )
    loc.Pretrained(out).save(learner, card, runs=[run])


def main(
    optimizer: str = "residual_muon",
    data: Path | None = None,
    out: Path = Path("quickstart"),
    seed: int = 0,
    meta: bool = False,
    smoke: bool = False,
) -> None:
    dataset, name = read(data), "digits, 8x8" if data is None else "Fashion-MNIST, 8x8"
    # There are 1,500 digits, on which the training loss soon falls to almost zero.
    width, steps, seeds = 256, 100 if data is None else 1000, 3
    sizes = {}
    if smoke:
        width, steps, seeds, sizes = 16, 10, 2, dict(meta_steps=4, pairs=2, window=5, longest=20)
    folder = loc.pretrained
    out.mkdir(parents=True, exist_ok=True)
    if meta:
        options = " --data FOLDER" * (data is not None) + " --smoke" * smoke
        command = f"python examples/quickstart.py --meta-train --seed {seed}{options}"
        meta_train(dataset, name, out, seed, command, **sizes)
        folder, optimizer = loc.Pretrained(out), "mulo"
    print(folder.card(optimizer))
    curves = compare(optimizer, folder, dataset, width, steps, seeds, seed)
    loc.plots.training_curves({f"{name}, width {width}": curves}, out / "quickstart.png")
    print(f"\nMeans of {seeds} seeds after {steps} steps; the training loss is that of the last 20 batches.")
    print(f"figure: {out / 'quickstart.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "residual_muon"
    parser.add_argument("optimizer", nargs="?", default=default, help="a name of `loc.pretrained.names()`")
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--meta-train", action="store_true", dest="meta", help="meta-train mulo first")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="output folder (default: quickstart)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, TypeError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to continue from the last checkpoint")
