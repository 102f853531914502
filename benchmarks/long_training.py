"""Train a byte transformer for thousands of steps with the published Celo2 weights, and look for spikes of the loss.

The authors of pylo report that the loss of language models rises suddenly after 3,000 steps with Celo2. Here a small
transformer reads Shakespeare: with a constant rate, with warm-up and decay, guarded by AdamW, and with an average of
the parameters; beside AdamW with warm-up and decay. Prints for each the training loss at the end (mean of the last 100
steps), that of the averaged parameters, the largest rise of the smoothed loss above its lowest value so far, and where
it was, and writes `benchmarks/results/long_training.json`. Run:

    python benchmarks/long_training.py --weights celo2_weights.pt --text input.txt
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import RESULTS, write

import lo_components as loc
from lo_components.optimizers import Guarded, OptaxOptimizer, Scheduled, StepContext
from lo_components.schedules import OptaxSchedule

RESULT = RESULTS / "long_training.json"
CHUNK = 100
SMOOTHING = 0.98


def published(weights: Path) -> loc.AbstractOptimizer:
    """Celo2 with a learning rate of 1, and AdamW for vectors and embeddings."""
    theta = loc.interop.from_pylo("celo2", loc.weights.read_arrays(weights))
    direction = loc.interop.from_reference("celo2", theta, {"lr": 1.0}).optimizer.optimizer
    adam = OptaxOptimizer(optax.adamw, 1.0, b1=0.9, b2=0.95, weight_decay=0.0)
    return loc.optimizers.Partitioned(direction, adam)


def contenders(weights: Path, rate: float, steps: int) -> dict[str, loc.AbstractOptimizer]:
    celo2 = published(weights)
    decaying = OptaxSchedule(optax.warmup_cosine_decay_schedule, 0.0, rate, steps // 10, steps, 0.1 * rate)
    constant = OptaxSchedule(optax.constant_schedule, rate)
    adamw = Scheduled(OptaxOptimizer(optax.adamw, 1.0, b2=0.95, weight_decay=0.0), decaying)
    return {
        "Celo2, constant rate": Scheduled(celo2, constant),
        "Celo2, warm-up and decay": Scheduled(celo2, decaying),
        "Celo2, constant rate, guarded": Guarded(Scheduled(celo2, constant), adamw),
        "AdamW, warm-up and decay": adamw,
    }


def train(optimizer: loc.AbstractOptimizer, task: loc.AbstractTask, steps: int, seed: int):
    """The loss of every step, and at the end that of the parameters and of their average, on the test split."""
    first, *keys = jax.random.split(jax.random.key(seed), 1 + steps)
    params = task.init(key=first)

    def step(carry, key):
        params, average, state = carry
        batch, other = (task.batch(key=k) for k in jax.random.split(key))
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, batch, key=key))(params)
        context = StepContext(loss, jnp.asarray(steps), loss_fn=lambda p: task.loss(p, other, key=key))
        updates, state = optimizer.update(grads, state, params, context=context)
        params = optax.apply_updates(params, updates)
        return (params, optax.incremental_update(params, average, 0.005), state), loss

    run = eqx.filter_jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    carry, losses = (params, params, optimizer.init(params)), []
    for start in range(0, steps, CHUNK):
        carry, chunk = run(carry, jnp.stack(keys[start : start + CHUNK]))
        losses.append(np.asarray(chunk))
    measure = eqx.filter_jit(lambda p: task.metrics(p, split="test", key=first)["loss"])
    return np.concatenate(losses), float(measure(carry[0])), float(measure(carry[1]))


def largest_rise(losses: np.ndarray) -> tuple[float, int]:
    """How far the smoothed loss rises above its lowest value so far, and at which step it is highest above it."""
    smooth, value = [], losses[0]
    for loss in losses:
        value = SMOOTHING * value + (1 - SMOOTHING) * loss
        smooth.append(value)
    rise = np.asarray(smooth) - np.minimum.accumulate(smooth)
    rise = np.where(np.isfinite(rise), rise, np.inf)
    return float(np.max(rise)), int(np.argmax(rise))


def main(weights: Path, text: Path, steps: int, seeds: int, rates: list[float], width: int, out: Path):
    data = loc.data.text_files(text, loc.data.ByteTokenizer(), length=64)
    task = loc.tasks.language_modeling(data, width=width, depth=2, heads=2, positions=True, batch_size=16)
    rows = []
    for rate in rates:
        for name, optimizer in contenders(weights, rate, steps).items():
            for seed in range(seeds):
                losses, test, averaged = train(optimizer, task, steps, seed)
                rise, at = largest_rise(losses)
                end = float(np.mean(losses[-100:]))
                row = {"optimizer": name, "rate": rate, "seed": seed, "train": end, "test": test}
                row |= {"test_of_average": averaged, "largest_rise": rise, "at_step": at}
                rows.append(row)
                print({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
                write(out, rows, steps=steps, width=width)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="`celo2_weights.pt` of pylo")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
