from typing import Unpack

import jax
from jaxtyping import PRNGKeyArray

from .. import features as ft
from ..aggregators import LearnedAggregator
from ._options import HeadOptions, Options
from ._pipelines import with_factored_features, with_mlp


def lagg_a(num_workers: int, *, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """The aggregator LAgg-A: small_fc_lopt's features, with each worker's delta in place of the gradient.

    It has $K + 38$ features; accumulators see the mean delta. It is built for exactly $K$ workers, in a fixed order.

    **Arguments:**

    - `num_workers`: $K$.
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    return LearnedAggregator(with_factored_features(ft.WorkerDeltas(num_workers), key=key, **options))


def pooled_lagg_a(*, embedding_size: int = 8, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """An LOpt-A that also sees a pooled embedding of the workers' deltas. Any number of workers, in any order.

    **Arguments:**

    - `embedding_size`: number of channels of [`lo_components.features.PooledWorkerDeltas`][].
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Not published; between the LOpt-A and the LAgg-A of Joseph, Thérien et al. (arXiv 2312.02204).
    """
    embedding_key, key = jax.random.split(key)
    inputs = ft.Concat(ft.Gradient(), ft.PooledWorkerDeltas(embedding_size, key=embedding_key))
    return LearnedAggregator(with_factored_features(inputs, key=key, **options))


def lopt_a(*, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """The aggregator LOpt-A: small_fc_lopt with the mean delta in place of the gradient. Any number of workers.

    It has 39 features.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    return LearnedAggregator(with_factored_features(ft.Gradient(), key=key, **options))


def lagg(num_workers: int, *, key: PRNGKeyArray, **options: Unpack[HeadOptions]) -> LearnedAggregator:
    """The aggregator LAgg, which sees each worker's delta, the parameter and the time.

    It has $K + 12$ features; its only state is the round number.

    **Arguments:**

    - `num_workers`: $K$.
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.HeadOptions`][].

    ??? cite "Source"
        LAgg-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return LearnedAggregator(with_mlp((), ft.Concat(ft.WorkerDeltas(num_workers), ft.Parameter()), key=key, **options))


def lopt(*, key: PRNGKeyArray, **options: Unpack[HeadOptions]) -> LearnedAggregator:
    """The aggregator LOpt, which sees the mean delta, the parameter and the time.

    It has 13 features; its only state is the round number.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.HeadOptions`][].

    ??? cite "Source"
        LOpt-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return LearnedAggregator(with_mlp((), ft.Concat(ft.Gradient(), ft.Parameter()), key=key, **options))
