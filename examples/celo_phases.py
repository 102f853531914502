"""Meta-train Celo in its two phases: first the MLP, then the schedule, while the MLP is frozen.

    python examples/celo_phases.py           # digits, a few minutes on two CPU cores
    python examples/celo_phases.py --smoke   # a tiny version

In the second phase the arrays of the MLP are `Constant`s: no noise is added to them, and the weight decay of the
meta-optimizer does not shrink them, as it does in the original. Prints the meta-losses and the losses of training
runs, and saves a figure and the weights. The sizes are far below the paper's (100,000 meta-steps in each phase, four
data sets and horizons of up to 2,000 steps), so this shows how it is done, not how good Celo is.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lo_components as loc
from lo_components.optimizers import AbstractOptimizer, ClippedByValue, Scheduled, StepContext
from lo_components.schedules import Exponential, LearnedSchedule
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll


def is_constant(x: Any) -> bool:
    return isinstance(x, loc.Constant)


class Frozen(AbstractOptimizer[Any]):
    """An optimizer of which nothing is learned: all its arrays are constants."""

    optimizer: AbstractOptimizer

    def __init__(self, optimizer: AbstractOptimizer):
        self.optimizer = jax.tree.map(lambda x: loc.Constant(x) if eqx.is_array(x) else x, optimizer)

    def thawed(self) -> AbstractOptimizer:
        return jax.tree.map(lambda x: x.value if is_constant(x) else x, self.optimizer, is_leaf=is_constant)

    def update_rules(self, params):
        return self.thawed().update_rules(params)

    def init(self, params):
        return self.thawed().init(params)

    def update(self, grads, state, params, *, context=StepContext()):
        return self.thawed().update(grads, state, params, context=context)


def meta_train(name: str, learner, estimator, num_steps: int, rate: float, key):
    """The learner after PES meta-training, with a line for each tenth of it."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    state = loc.meta.init_meta_state(learner, estimator, optimizer, key=key)
    step = eqx.filter_jit(lambda state: loc.meta.meta_step(state, estimator, optimizer))
    count = sum(x.size for x in jax.tree.leaves(loc.theta(learner)))
    print(f"\n{name}: {count} meta-parameters\n{'meta-steps':>12}{'meta-loss':>12}{'finite':>9}{'seconds':>9}")
    every, rows, begin = max(1, num_steps // 10), [], time.perf_counter()
    for t in range(1, num_steps + 1):
        state, metrics = step(state)
        rows.append((float(metrics.meta_loss), float(metrics.finite)))
        if t % every == 0:
            loss, finite = np.mean(rows[-every:], axis=0)
            print(f"{t:>12}{loss:>12.4f}{finite:>9.2f}{time.perf_counter() - begin:>9.0f}", flush=True)
    return state.learner


def main(out: Path = Path("celo_phases.png"), meta_steps: int = 400, steps: int = 400, smoke: bool = False) -> None:
    horizon, window, pairs, lstm_size = LogUniformHorizon(50, 400), 25, 4, 64
    if smoke:
        meta_steps, steps, horizon, window, pairs, lstm_size = 4, 10, LogUniformHorizon(4, 8), 4, 2, 4
        jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    pes = loc.estimators.PES(TruncatedUnroll(task, horizon, window), num_pairs=pairs, std=0.02)
    keys = jax.random.split(jax.random.key(0), 5)

    # Ten times the paper's step multiplier, since training is ten times shorter.
    untrained = ClippedByValue(loc.recipes.celo_update(step_mult=1e-2, key=keys[0]))
    first = meta_train("phase 1, the MLP", untrained, pes, meta_steps, 1e-2, keys[1])

    schedule = Exponential(LearnedSchedule(lstm_size, key=keys[2]), 0.1)
    started = ClippedByValue(Scheduled(Frozen(first.optimizer), schedule))
    second = meta_train("phase 2, the schedule", started, pes, meta_steps, 3e-3, keys[3])
    # The same optimizer as `recipes.celo` makes, so it can be saved and exported like one.
    celo = ClippedByValue(Scheduled(first.optimizer, second.optimizer.schedule))
    loc.weights.save(out.with_suffix(".safetensors"), celo)

    def run(optimizer):
        return loc.meta.evaluate(optimizer, task, num_steps=steps, num_seeds=3, key=keys[4])

    adam = loc.meta.sweep(lambda rate: run(loc.OptaxOptimizer(optax.adam, rate)), jnp.asarray([1e-3, 3e-3, 1e-2]))
    curves = {"before meta-training": run(untrained).losses, "after phase 1": run(first).losses}
    curves |= {"after phase 2": run(celo).losses, "Adam, best of 3 rates": adam.best().evaluation.losses}
    print(f"\ntraining loss after {steps} steps, mean over 20: median of 3 seeds (lowest to highest)")
    for name, losses in curves.items():
        means = np.asarray(losses)[:, -20:].mean(axis=1)
        print(f"{name:<24}{np.median(means):.4f} ({means.min():.4f} to {means.max():.4f})")
    loc.plots.training_curves({"digits": curves}, out, title="Celo's two phases", horizon=int(horizon.max_steps))
    print(f"\nweights: {out.with_suffix('.safetensors')}\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("celo_phases.png"))
    parser.add_argument("--meta-steps", type=int, default=400, help="in each phase")
    parser.add_argument("--steps", type=int, default=400, help="of the training runs after meta-training")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
