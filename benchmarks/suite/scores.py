"""Scores of training curves against those of the baselines.

A curve of T steps is cut into 500 parts of u = T / 500 steps. The mean losses l[k] of the parts are smoothed by
m[0] = l[0], m[k] = 0.95 m[k-1] + 0.05 l[k], and m[k] counts as the loss after (k + 1) u steps. At T = 5,000 this is the
smoothing of the baseline curves of google/learned_optimization.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

POINTS = 500
DECAY = 0.95


def smoothed(losses: Float[np.ndarray, "seeds steps"]) -> Float[np.ndarray, "seeds points"]:
    """The smoothed losses; NaN from the first part with a loss that is not finite."""
    points = min(POINTS, losses.shape[1])
    size = losses.shape[1] // points
    losses = np.where(np.isfinite(losses), losses, np.nan)[:, : points * size].astype(np.float64)
    return averaged(losses.reshape(len(losses), points, size).mean(axis=2))


def averaged(means: Float[np.ndarray, "*curves points"]) -> Float[np.ndarray, "*curves points"]:
    """The exponential average along each curve, which begins with its first value."""
    curve = means.copy()
    for k in range(1, means.shape[-1]):
        curve[..., k] = DECAY * curve[..., k - 1] + (1 - DECAY) * means[..., k]
    return curve


def fraction_to(curve: Float[np.ndarray, "seeds points"], target: float) -> Float[np.ndarray, " seeds"]:
    """The fraction of the steps after which each curve is at most `target` for the first time; infinity if never."""
    reached = curve <= target
    first = (np.argmax(reached, axis=1) + 1) / curve.shape[1]
    return np.where(reached.any(axis=1), first, np.inf)


def half_way(curve: Float[np.ndarray, "seeds points"]) -> float:
    """The mean loss over seeds after half of the steps; infinity if it is not finite."""
    return _finite(float(np.mean(curve[:, (curve.shape[1] + 1) // 2 - 1])))


def final(curve: Float[np.ndarray, "seeds points"]) -> float:
    """The mean loss over seeds at the end; infinity if it is not finite."""
    return _finite(float(np.mean(curve[:, -1])))


def _finite(x: float) -> float:
    return x if math.isfinite(x) else math.inf


def diverged(
    losses_before: Float[np.ndarray, " seeds"], curve: Float[np.ndarray, "seeds points"]
) -> Bool[np.ndarray, " seeds"]:
    """Whether a loss was not finite, or the last smoothed loss is above the loss before the first step."""
    return ~(curve[:, -1] <= losses_before)


def of_task(
    curve: Float[np.ndarray, "seeds points"],
    losses_before: Float[np.ndarray, " seeds"],
    reference: Float[np.ndarray, "seeds2 points"],
    target: float,
) -> dict[str, Float[np.ndarray, " seeds"]]:
    """The scores of each seed.

    **Arguments:**

    - `curve`: smoothed losses.
    - `losses_before`: the losses before the first step.
    - `reference`: smoothed losses of the baseline AdamW.
    - `target`: the lowest mean loss of a baseline after half of the steps.

    **Returns:** by name

    - `speedup`: 1/2 over the fraction of the steps to `target`; 0 if it is never reached.
    - `speedup_adamw`: 1 over the fraction of the steps to AdamW's mean loss at the end; 0 if it is never reached.
    - `ratio`: the loss at the end over AdamW's mean; infinite if it is not finite.
    - `area`: the mean over all points of the logarithm of the loss over AdamW's mean; infinite if one is not finite.
    - `diverged`: 1 for a seed that diverged, else 0.
    """
    end = curve[:, -1] / final(reference)
    area = np.mean(np.log(curve) - np.log(np.mean(reference, axis=0)), axis=1)
    return {
        "speedup": 0.5 / fraction_to(curve, target),
        "speedup_adamw": 1.0 / fraction_to(curve, final(reference)),
        "ratio": np.where(np.isfinite(end), end, np.inf),
        "area": np.where(np.isfinite(area), area, np.inf),
        "diverged": diverged(losses_before, curve).astype(np.float64),
    }


def compared(
    curve: Float[np.ndarray, "seeds points"], other: Float[np.ndarray, "seeds points"], target: float
) -> dict[str, Float[np.ndarray, " seeds"]]:
    """Scores of one optimizer over another on one task, seed by seed: above 1, respectively below 1, if it is better.

    **Arguments:**

    - `curve`, `other`: smoothed losses of both.
    - `target`: as in `of_task`.

    **Returns:** by name

    - `steps`: the other's steps to `target` over its own; 1 if neither reaches it.
    - `steps_to_final`: 1 over the fraction of the steps after which it has the other's loss at the end; 0 if never.
    - `ratio`: the ratio of the losses at the end, which are infinite if they are not finite; 1 if both are.
    """

    def over(x, y):  # 1 if both are infinite
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(x) & np.isinf(y), 1.0, x / y)

    end, other_end = (np.where(np.isfinite(c[:, -1]), c[:, -1], np.inf) for c in (curve, other))
    to_end = np.array([fraction_to(c[None], loss)[0] for c, loss in zip(curve, other_end, strict=True)])
    return {
        "steps": over(fraction_to(other, target), fraction_to(curve, target)),
        "steps_to_final": 1.0 / to_end,
        "ratio": over(end, other_end),
    }


def interquartile_mean(*samples: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """The mean of the middle half of all samples together."""
    return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def interval(
    scores: Sequence[Float[np.ndarray, " seeds"]],
    statistic: Callable = interquartile_mean,
    resamples: int = 5000,
) -> tuple[float, float, float]:
    """A statistic of the scores of several tasks, with its 95 % interval from a stratified bootstrap.

    Seeds are resampled within each task, so the interval is about other seeds, not about other tasks.
    """
    point = float(statistic(*scores))
    if min(map(len, scores)) < 2:
        return point, math.nan, math.nan
    with np.errstate(invalid="ignore"):  # the bootstrap's standard error, which is not used, of infinite scores
        found = stats.bootstrap(
            tuple(scores),
            statistic,
            paired=False,
            method="percentile",
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        )
    # Without interpolation, since scores may be infinite.
    low = np.quantile(found.bootstrap_distribution, 0.025, method="lower")
    high = np.quantile(found.bootstrap_distribution, 0.975, method="higher")
    return point, float(low), float(high)


def profile(
    times: Mapping[str, Sequence[float]], taus: Float[np.ndarray, " taus"]
) -> dict[str, Float[np.ndarray, " taus"]]:
    """For each optimizer, the share of tasks on which its time to the target is at most tau times the fastest one's.

    **Arguments:**

    - `times`: the times on all tasks by optimizer, infinite if the target is never reached.
    - `taus`: factors, from 1.
    """
    table = np.array([list(t) for t in times.values()], np.float64)
    with np.errstate(invalid="ignore"):
        relative = table / table.min(axis=0)
    relative = np.where(np.isnan(relative), np.inf, relative)
    return {name: np.mean(row[:, None] <= taus, axis=0) for name, row in zip(times, relative, strict=True)}


def profile_score(shares: Float[np.ndarray, " taus"], taus: Float[np.ndarray, " taus"]) -> float:
    """The mean height of a performance profile, as in AlgoPerf."""
    return float(np.trapezoid(shares, taus) / (taus[-1] - taus[0]))
