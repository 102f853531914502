from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import typechecked


class Interval(NamedTuple):
    """An estimate with a confidence interval.

    **Arguments:**

    - `value`: the estimate.
    - `low`, `high`: the ends of the interval.
    """

    value: float
    low: float
    high: float


@typechecked
def median_interval(
    values: Float[Array | np.ndarray, " seeds"],
    *,
    over: Float[Array | np.ndarray, " others"] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    key: PRNGKeyArray,
) -> Interval:
    r"""The median over seeds, or a ratio of two medians, with a confidence interval by the percentile bootstrap.

    Infinite values, which [`lo_components.meta.Evaluation`][]`.steps_to` gives for seeds that never reach the loss, are
    allowed: the interval ends at infinity unless the median is finite in nearly all resamples. NaN counts as infinity.
    If both medians of a ratio are infinite, the ratio is NaN, and such a resample extends the interval in both
    directions.

    An interval never extends beyond the lowest and the highest seed, so with fewer than six seeds its coverage is below
    95 % for every `confidence`.

    **Arguments:**

    - `values`: one positive number per seed, for instance `evaluation.steps_to(0.5)`.
    - `over`: values whose median divides that of `values`; resampled independently.
    - `confidence`: between 0 and 1.
    - `num_resamples`: the number of bootstrap resamples.
    - `key`: for the resamples.

    Raises `ValueError` if there are no values, or if `confidence` or `num_resamples` is out of range.

    ??? cite "Source"
        Efron & Tibshirani, *An Introduction to the Bootstrap*, chapter 13.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    if num_resamples < 1 or not values.size or (over is not None and not over.size):
        raise ValueError("`num_resamples`, and the number of values, must be at least 1.")
    value, resampled = _medians(values, num_resamples, jax.random.fold_in(key, 0))
    if over is not None:
        divisor, divisors = _medians(over, num_resamples, jax.random.fold_in(key, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            value, resampled = value / divisor, resampled / divisors
    tail = (1 - confidence) / 2 * (num_resamples - 1)
    # Order statistics, since interpolation between infinite values is undefined.
    low = np.sort(np.where(np.isnan(resampled), 0.0, resampled))[int(np.floor(tail))]
    high = np.sort(np.where(np.isnan(resampled), np.inf, resampled))[-1 - int(np.floor(tail))]
    return Interval(float(value), float(low), float(high))


def _medians(
    values: Float[Array | np.ndarray, " seeds"], num_resamples: int, key: PRNGKeyArray
) -> tuple[np.float64, Float[np.ndarray, " resamples"]]:
    """The median of the values, and of each resample."""
    values = np.asarray(values, np.float64)
    values = np.where(np.isnan(values), np.inf, values)
    index = np.asarray(jax.random.randint(key, (num_resamples, values.size), 0, values.size))
    return np.median(values), np.median(values[index], axis=1)
