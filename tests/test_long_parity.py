"""Published weights over 200 steps, beside the original implementations (golden/README.md describes the problem)."""

import json

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import GOLDEN, published_weights

from lo_components import interop
from lo_components.optimizers import StepContext

RUNS = json.loads((GOLDEN / "long.json").read_text())


def problem(run):
    """The initial parameters, and a function from parameters and step to loss and gradients, in float64."""
    names, phase = sorted(run["shapes"]), run["phase"]

    def wave(name, amplitude, frequency, offset, per_leaf):
        shape = run["shapes"][name]
        i = np.arange(np.prod(shape, dtype=int))
        return (amplitude * np.sin(frequency * i + per_leaf * names.index(name) + phase + offset)).reshape(shape)

    start = {n: wave(n, 0.3 if len(run["shapes"][n]) >= 2 else 0.05, 0.21, np.pi / 2, 0.7) for n in names}
    target = {n: wave(n, 0.5, 0.37, 0.0, 1.3) for n in names}
    weight = {n: 0.1 ** (names.index(n) % 3) for n in names}

    def loss_and_gradients(params, t):
        errors = {n: np.asarray(params[n], np.float64) - target[n] for n in names}
        loss = 1.0 + 0.05 * np.sin(0.7 * t) + sum(0.5 * weight[n] * np.mean(errors[n] ** 2) for n in names)
        grads = {n: weight[n] * (errors[n] + wave(n, 0.1, 0.9, 2.1 * t, 0.5)) for n in names}
        as_float32 = {n: g.astype(np.float32) for n, g in grads.items()}
        return np.float32(loss * (3.0 if t in run["spikes"] else 1.0)), as_float32

    return {n: p.astype(np.float32) for n, p in start.items()}, loss_and_gradients


def trajectory(run):
    """The loss of each step, and the parameters after every step."""
    theta = published_weights(run["weights"])
    config = {k: v for k, v in run.items() if k not in ("shapes", "phase", "spikes", "steps")}
    learner = interop.from_reference(run["kind"], theta, config)
    start, loss_and_gradients = problem(run)

    @eqx.filter_jit
    def step(learner, grads, state, params, context):
        updates, state = learner.update(grads, state, params, context=context)
        return optax.apply_updates(params, updates), state

    params, state, losses, reached = start, learner.init(start), [], []
    for t in range(run["steps"]):
        loss, grads = loss_and_gradients(params, t)
        params, state = step(learner, grads, state, params, StepContext(loss, np.int32(run["num_steps"])))
        params = jax.tree.map(np.asarray, params)
        losses.append(loss)
        reached.append(params)
    return start, losses, reached


def deviations(name):
    """For every 20 steps, the largest deviation of a leaf's norm, movement and probes, relative to its movement."""
    start, losses, reached = trajectory(RUNS[name])
    found = {}
    with np.load(GOLDEN / f"{name}.npz") as golden:
        for steps in range(20, len(reached) + 1, 20):
            worst = 0.0
            for leaf, p in reached[steps - 1].items():
                moved, n = golden[f"moved/{steps}/{leaf}"], p.size
                pairs = [
                    (np.linalg.norm(p), golden[f"norm/{steps}/{leaf}"]),
                    (np.linalg.norm(p - start[leaf]), moved),
                    (p.ravel()[[0, n // 3, n // 2, n - 1]], golden[f"probe/{steps}/{leaf}"]),
                ]
                worst = max(worst, *(float(np.max(np.abs(a - b)) / moved) for a, b in pairs))
            found[steps] = worst
        losses_differ = np.max(np.abs(np.asarray(losses) / golden["losses"] - 1.0))
    return found, float(losses_differ)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", RUNS)
def test_published_weights_agree_with_the_original_over_200_steps(name):
    found, losses_differ = deviations(name)
    assert max(found.values()) < 1e-3, found
    assert losses_differ < 1e-3
