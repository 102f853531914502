"""Compare the bias and variance of all meta-gradient estimators over the length of the truncation window.

    python examples/compare_estimators.py            # two problems, several minutes
    python examples/compare_estimators.py --estimators ES-Single "full ES"
    python examples/compare_estimators.py --smoke    # a tiny version

Problem 1: the learning rate of gradient descent on a quadratic, whose (smoothed) meta-gradient is known exactly.
Problem 2: all weights of a small learned optimizer that trains a network on digits. Its reference is full-unroll ES
with many pairs, and errors are measured along the reference. Prints the mean, its standard error and the standard
deviation of single estimates, each averaged over one whole episode, and saves a figure.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lo_components as loc
from lo_components.estimators import PES, ESSingle, FullES, TruncatedBackprop, TruncatedES
from lo_components.unroll import TruncatedUnroll

KEY = jax.random.key(0)
NAMES = ("truncated backprop", "truncated ES", "PES", "ES-Single", "full ES")


def estimates(estimator, learner: Any, num_windows: int, replicates: int, key, at_once: int = 4) -> np.ndarray:
    """Independent estimates `[replicates, theta]`, each the mean over the windows of one episode.

    The staggered first episodes are left out.
    """

    @eqx.filter_jit
    def run(estimator, keys):
        def replicate(key):
            init_key, key = jax.random.split(key)

            def window(state, key):
                estimate, state = estimator.estimate(learner, state, key=key)
                return state, jnp.concatenate([g.ravel() for g in jax.tree.leaves(estimate.grad)])

            keys = jax.random.split(key, 2 * num_windows)
            return jnp.mean(jax.lax.scan(window, estimator.init(learner, key=init_key), keys)[1][num_windows:], axis=0)

        return jax.lax.map(replicate, keys, batch_size=min(replicates, at_once))

    return np.asarray(run(estimator, jax.random.split(key, replicates)), np.float64)


def make_estimators(
    names: tuple[str, ...], task, steps: int, window: int, std: float, num_pairs: int
) -> dict[str, tuple[Any, int]]:
    """Estimators by name, with the number of windows in an episode. Full ES is included if there is one window."""
    unroll = TruncatedUnroll(task, steps, window)
    found: dict[str, tuple[Any, int]] = {
        "truncated backprop": (TruncatedBackprop(unroll, 2 * num_pairs), steps // window),
        "truncated ES": (TruncatedES(unroll, num_pairs, std=std), steps // window),
        "PES": (PES(unroll, num_pairs, std=std), steps // window),
        "ES-Single": (ESSingle(unroll, num_pairs, std=std), steps // window),
    }
    if window == steps:
        found["full ES"] = (FullES(unroll, num_pairs, std=std), 1)
    return {name: found[name] for name in found if name in names}


def known_gradient(rate: float, std: float, start: np.ndarray, steps: int, window: int) -> float:
    r"""The gradient in $\eta$ of the mean over $t$ of $\frac12 \prod_{s<t} (1 - \eta_s)^2 \lVert p\rVert^2$.

    $\eta_s \sim \mathcal N(\eta, \sigma^2)$ is the same for all steps of a window of length `window`. Expectations are
    computed by quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()

    def shrink(power: int) -> tuple[float, float]:
        """The mean of a power of 1 - eta over the noise, and its derivative."""
        left = 1 - rate - std * nodes
        return weights @ left**power, -power * (weights @ left ** max(power - 1, 0))

    whole, whole_slope = shrink(2 * window)
    total = 0.0
    for t in range(steps):
        before = t // window
        part, part_slope = shrink(2 * (t % window))
        total += part_slope * whole**before
        total += part * before * whole ** max(before - 1, 0) * whole_slope
    return 0.5 * float(np.sum(start**2)) * total / steps


def table(
    name: str, make: Callable, learner, windows, reference_of: Callable, direction, replicates, rows, at_once=4
) -> None:
    """Print and collect a row for every estimator and window."""
    print(f"\n{name}\n{'estimator':<20}{'window':>7}{'mean':>11}{'error':>10}{'off by':>13}{'std':>11}{'s':>5}")
    for window in windows:
        for kind, (estimator, num_windows) in make(window).items():
            begin = time.perf_counter()
            found = estimates(estimator, learner, num_windows, replicates, KEY, at_once)
            along = found @ direction
            error = along.std(ddof=1) / np.sqrt(len(along))
            reference, reference_error = reference_of(kind, window)
            total = float(np.hypot(error, reference_error))
            off = (along.mean() - reference) / total if total > 1e-6 * abs(reference) else np.nan
            std = float(np.sqrt(found.var(axis=0, ddof=1).sum()))
            row = dict(problem=name, estimator=kind, window=window, mean=float(along.mean()), error=float(error))
            rows.append(row | dict(reference=reference, std=std))
            far = f"{off:>8.1f} s.e." if np.isfinite(off) else f"{along.mean() / reference - 1:>12.2%}"
            seconds = time.perf_counter() - begin
            print(
                f"{kind:<20}{window:>7}{along.mean():>11.4f}{error:>10.4f}{far:>13}{std:>11.4f}{seconds:>5.0f}",
                flush=True,
            )


def main(
    estimators: tuple[str, ...] = NAMES,
    out: Path = Path("compare_estimators.png"),
    replicates: int = 1000,
    smoke: bool = False,
) -> None:
    rows: list[dict] = []
    replicates = 8 if smoke else replicates

    steps, rate, std = (4 if smoke else 100), 0.03, 0.003
    start = np.array([1.0, -2.0, 0.5])

    def known(kind: str, window: int) -> tuple[float, float]:
        """The gradient of the meta-loss as this estimator smooths it, which an unbiased estimate has as its mean."""
        noise = 0.0 if "backprop" in kind else std
        return known_gradient(rate, noise, start, steps, steps if kind in ("ES-Single", "full ES") else window), 0.0

    task = loc.tasks.Quadratic(jnp.asarray(start, jnp.float32))
    print(f"known gradient {known('backprop', steps)[0]:.4f}, smoothed {known('full ES', steps)[0]:.4f}")
    table(
        "learning rate on a quadratic",
        lambda window: make_estimators(estimators, task, steps, window, std, num_pairs=8),
        loc.OptaxOptimizer(optax.sgd, jnp.asarray(rate)),
        (2, 4) if smoke else (1, 5, 20, 100),
        known,
        np.ones(1),
        replicates,
        rows,
        at_once=64,
    )

    if not smoke:
        steps, std = 100, 0.01
        task = loc.tasks.mlp_classification(loc.data.digits(), width=8, depth=1, batch_size=32)
        learner = loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=jax.random.key(3))
        reference = FullES(TruncatedUnroll(task, steps, steps), 32, std=std)
        found = estimates(reference, learner, 1, replicates // 10, jax.random.key(1))
        # The direction is from one half of the estimates and the length from the other; otherwise noise would bias the
        # length upwards.
        half = len(found) // 2
        direction = found[:half].mean(axis=0)
        direction /= np.linalg.norm(direction)
        along = found[half:] @ direction
        measured = (float(along.mean()), float(along.std(ddof=1) / np.sqrt(len(along))))
        print(f"\nreference: {measured[0]:.4f} with a standard error of {measured[1]:.4f}")
        table(
            "a learned optimizer on digits",
            lambda window: make_estimators(estimators, task, steps, window, std, num_pairs=8),
            learner,
            (10, 100),
            lambda kind, window: measured,
            direction,
            replicates // 10,
            rows,
        )
    loc.plots.bias_and_variance(rows, out)
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", choices=NAMES, nargs="+", default=NAMES)
    parser.add_argument("--out", type=Path, default=Path("compare_estimators.png"))
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
