"""Time a training step, and the batch for it: sampled on the device, from `data.pipeline`, or from Grain alone.

Prints milliseconds for each task and on-device sampling as a fraction of a step, and writes
`benchmarks/results/input.json`. Images are random, 28x28; sequences have 64 tokens. Run: `python benchmarks/input.py`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import RESULTS, write

import lo_components as loc
from lo_components.parametrization import MuP

RESULT = RESULTS / "input.json"
KEY = jax.random.key(0)


def tasks():
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (20_000, 28, 28), dtype=np.uint8), rng.integers(0, 10, 20_000))
    images = loc.data.image_dataset({"train": images}, num_classes=10, name="random images")
    tokens = jnp.asarray(rng.integers(1, 4000, (20_000, 64)), jnp.int32)
    tokens = loc.data.TokenDataset({"train": tokens}, 4000)
    mlp, mup = loc.tasks.mlp_classification, dict(parametrization=MuP())
    for width in (32, 128, 512):
        yield f"MLP, width {width}", images, mlp(images, width=width, depth=2, batch_size=128, **mup)
    yield (
        "ViT, width 64",
        images,
        loc.tasks.vit_classification(images, patch_size=7, width=64, depth=2, heads=4, batch_size=128, **mup),
    )
    language = loc.tasks.language_modeling(tokens, width=64, depth=2, heads=4, batch_size=32, **mup)
    yield "LM, width 64", tokens, language


def milliseconds(call: Callable, rounds: int) -> float:
    """The median time of `rounds` calls, after two warm-up calls."""
    seconds = []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds[2:])


def train_step(task, optimizer: optax.GradientTransformation):
    @eqx.filter_jit
    def step(params, state, batch):
        grads = jax.grad(task.loss)(params, batch, key=KEY)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = task.init(key=KEY)
    return lambda batch: step(params, optimizer.init(params), batch)


class Examples:
    """A data set one example at a time, as Grain's own shuffling and batching read it."""

    def __init__(self, dataset):
        self._arrays = [np.asarray(x) for x in jax.tree.leaves(dataset.splits["train"])]

    def __len__(self):
        return len(self._arrays[0])

    def __getitem__(self, index):
        return [array[index] for array in self._arrays]


def grain_alone(dataset, batch_size: int):
    """Batches that Grain shuffles, repeats and assembles, with images normalized per batch as in `data.pipeline`."""
    import grain

    def normalize(batch):
        images, *labels = batch
        return [(images.astype(np.float32) - dataset.mean) / dataset.std, *labels] if labels else batch

    examples = grain.MapDataset.source(Examples(dataset)).seed(0).shuffle().repeat().batch(batch_size)
    return iter(examples.map(normalize).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def measured(name: str, dataset, task, rounds: int) -> dict:
    """One row of the table."""
    alone = grain_alone(dataset, task.batch_size)
    batch = task.batch(key=KEY)
    step, sample = train_step(task, optax.adam(1e-3)), eqx.filter_jit(lambda key: task.batch(key=key))
    pipeline = loc.data.pipeline(dataset, task.batch_size, seed=0)
    ahead = loc.data.prefetch_to_device(loc.data.pipeline(dataset, task.batch_size, seed=0))
    row = {
        "task": name,
        "step_ms": milliseconds(lambda: step(batch), rounds),
        "on_device_ms": milliseconds(lambda: sample(KEY), rounds),
        "pipeline_ms": milliseconds(lambda: next(pipeline), rounds),
        "grain_alone_ms": milliseconds(lambda: next(alone), rounds),
    }
    # The cost to a loop that computes while the next batch is prepared: both together, minus the step alone.
    row["prefetched_ms"] = max(0.0, milliseconds(lambda: step(next(ahead)), rounds) - row["step_ms"])
    for iterator in (pipeline, ahead, alone):
        iterator.close()
    row["on_device_fraction"] = row["on_device_ms"] / row["step_ms"]
    return row


def main(rounds: int = 30, out: Path = RESULT):
    rows = []
    print(f"{'task':<18}{'step':>9}{'on device':>11}{'':>7}{'pipeline':>10}{'prefetched':>12}{'Grain alone':>13}  (ms)")
    for name, dataset, task in tasks():
        rows.append(row := measured(name, dataset, task, rounds))
        print(
            f"{name:<18}{row['step_ms']:>9.2f}{row['on_device_ms']:>11.3f}{row['on_device_fraction']:>7.1%}"
            f"{row['pipeline_ms']:>10.2f}{row['prefetched_ms']:>12.2f}{row['grain_alone_ms']:>13.2f}",
            flush=True,
        )
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
