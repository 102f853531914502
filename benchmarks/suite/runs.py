"""Train one task with one optimizer, tune its learning rate, and keep every curve in a file."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

import lo_components as loc

from . import scores
from .optimizers import Optimizer
from .tasks import TASKS, Growth, TaskSpec

MEASUREMENTS = 10  # of the held-out loss during training
FIRST_TUNING_SEED = 1000
RATES = tuple(m * 10.0**e for e in range(-6, 3) for m in (1, 3))  # half decades, to widen grids


@dataclasses.dataclass(frozen=True)
class Run:
    """The curves of one optimizer on one task, at the learning rate that was chosen.

    **Arguments:**

    - `losses`: the training loss before each step.
    - `held_out`: the loss on the held-out split after each tenth of the steps.
    - `rate`: the learning rate.
    - `tuning`: the mean smoothed loss at the end for each learning rate that was tried.
    """

    losses: Float[np.ndarray, "seeds steps"]
    held_out: Float[np.ndarray, "seeds measurements"]
    rate: float
    tuning: dict[float, float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where data and results are, and how many seeds to run.

    **Arguments:**

    - `data`: the folder of data.
    - `out`: the folder of results, which also holds the finished runs, so that an interrupted call continues.
    - `seeds`: runs that decide the scores.
    - `tuning_seeds`: runs for each learning rate of a grid, with other seeds.
    """

    data: Path
    out: Path
    seeds: int = 3
    tuning_seeds: int = 1


def run_all(
    setting: Setting, optimizers: Sequence[Optimizer], tasks: Iterable[str], horizons: Iterable[int], jobs: int = 1
) -> dict[tuple[str, str, int], Run]:
    """The runs of all optimizers on all tasks, by name of the optimizer, task and horizon."""
    todo = [(o, TASKS[t], h) for h in horizons for t in tasks for o in optimizers]

    def one(item):
        optimizer, spec, horizon = item
        return (optimizer.name, spec.name, horizon), tuned_run(setting, optimizer, spec, horizon)

    # Compiled programs release the interpreter, so threads are enough.
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return dict(pool.map(one, todo))


def tuned_run(setting: Setting, optimizer: Optimizer, spec: TaskSpec, horizon: int) -> Run:
    """Choose the learning rate with the lowest smoothed loss at the end, then run it with fresh seeds."""

    def score(rate: float) -> float:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + setting.tuning_seeds)
        losses = np.stack([one_run(setting, optimizer, spec, horizon, rate, seed)[0] for seed in seeds])
        return float(np.mean(scores.smoothed(losses)[:, -1]))

    found = search(score, optimizer.rates) if len(optimizer.rates) > 1 else {}
    rate = best_rate(found) if found else optimizer.rates[0]
    runs = [one_run(setting, optimizer, spec, horizon, rate, seed) for seed in range(setting.seeds)]
    losses, held_out = (np.stack(x) for x in zip(*runs, strict=True))
    return Run(losses, held_out, rate, dict(sorted(found.items())))


def best_rate(found: Mapping[float, float]) -> float:
    """The rate with the lowest score."""
    return min(found, key=found.__getitem__)


def search(score: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """The score of each rate, infinite if it is not finite.

    A grid of several rates is widened by half decades while its edge is best.
    """

    def finite(rate: float) -> float:
        found = score(rate)
        return found if math.isfinite(found) else math.inf

    found = {rate: finite(rate) for rate in rates}
    while len(rates) > 1:
        best = best_rate(found)
        if not math.isfinite(found[best]):
            beyond = [r for r in RATES if r < 0.9 * min(found)][-1:]  # everything diverged
        elif best == min(found):
            beyond = [r for r in RATES if r < 0.9 * best][-1:]
        elif best == max(found):
            beyond = [r for r in RATES if r > 1.1 * best][:1]
        else:
            break
        if not beyond:
            break
        found[beyond[0]] = finite(beyond[0])
    return found


def one_run(
    setting: Setting, optimizer: Optimizer, spec: TaskSpec, horizon: int, rate: float, seed: int
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " measurements"]]:
    """The training losses and the held-out losses of one seed, read from a file if it was run before."""
    identity = {
        "task": spec.definition(setting.data),
        "optimizer": optimizer.fingerprint(rate, horizon),
        "growth": repr(optimizer.growth),
        "rate": rate,
        "horizon": horizon,
        "seed": seed,
    }
    text = json.dumps(identity, sort_keys=True)
    name = f"{optimizer.name}-{horizon}-{rate:g}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    path = setting.out / "runs" / spec.name / name.replace("/", "_")
    if not path.exists():
        start = time.perf_counter()
        task = _task(spec.name, setting.data, optimizer.growth)
        losses, held_out = train(optimizer.learner(rate, horizon), task, horizon, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        details = {**identity, "name": optimizer.name, "seconds": time.perf_counter() - start}
        loc.weights.save_arrays(path, {"losses": losses, "held_out": held_out}, metadata=details)
        final = scores.smoothed(losses[None])[0, -1]
        print(
            f"{spec.name:<15} {horizon:>6} steps  {optimizer.name:<12} rate {rate:<8g} seed {seed:<5} "
            f"loss {final:<10.4g} held out {held_out[-1]:<10.4g} {details['seconds']:.0f} s",
            flush=True,
        )
    arrays = loc.weights.read_arrays(path)
    return arrays["losses"], arrays["held_out"]


@functools.lru_cache(maxsize=4)
def _task(name: str, folder: Path, growth: Growth) -> loc.tasks.AbstractMeasuredTask:
    return TASKS[name].build(folder, growth)


def train(learner, task, horizon: int, seed: int):
    """Train from scratch; the loss before each step, and the held-out loss after each tenth of the steps."""
    with jax.numpy_dtype_promotion("standard"):
        found = loc.meta.evaluate(
            learner,
            task,
            num_steps=horizon,
            num_seeds=1,
            splits=("test",),
            metrics_every=max(1, horizon // MEASUREMENTS),
            key=jax.random.key(seed),
        )
    return np.asarray(found.losses)[0], np.asarray(found.metrics["test"]["loss"])[0]
