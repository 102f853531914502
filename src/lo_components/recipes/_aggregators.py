from typing import Unpack

import jax
from jaxtyping import PRNGKeyArray

from .. import features as ft
from ..aggregators import LearnedAggregator
from ._options import HeadOptions, Options
from ._pipelines import with_factored_features, with_mlp


def lagg_a(num_workers: int, *, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """LAgg-A: the features of small_fc_lopt, with each worker's delta in place of the gradient: $K + 38$ features.

    Statistics are those of the mean delta. Built for exactly $K$ workers, whose order matters.

    **Arguments:**

    - `num_workers`: $K$.
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    return LearnedAggregator(with_factored_features(ft.WorkerDeltas(num_workers), key=key, **options))


def pooled_lagg_a(*, embedding_size: int = 8, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """LOpt-A that also sees a pooled embedding of the workers' deltas: for any number of workers, in any order.

    **Arguments:**

    - `embedding_size`: channels of [`lo_components.features.PooledWorkerDeltas`][].
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Not published; between the LOpt-A and the LAgg-A of Joseph, Thérien et al. (arXiv 2312.02204).
    """
    embedding_key, key = jax.random.split(key)
    inputs = ft.Concat(ft.Gradient(), ft.PooledWorkerDeltas(embedding_size, key=embedding_key))
    return LearnedAggregator(with_factored_features(inputs, key=key, **options))


def lopt_a(*, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedAggregator:
    """LOpt-A: small_fc_lopt with the mean delta in place of the gradient, 39 features; for any number of workers.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; decay rates are per round.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    return LearnedAggregator(with_factored_features(ft.Gradient(), key=key, **options))


def lagg(num_workers: int, *, key: PRNGKeyArray, **options: Unpack[HeadOptions]) -> LearnedAggregator:
    """LAgg: each worker's delta, the parameter and the time, $K + 12$ features; its only state is the round number.

    **Arguments:**

    - `num_workers`: $K$, fixed as for [`lo_components.recipes.lagg_a`][].
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.HeadOptions`][].

    ??? cite "Source"
        LAgg-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return LearnedAggregator(with_mlp((), ft.Concat(ft.WorkerDeltas(num_workers), ft.Parameter()), key=key, **options))


def lopt(*, key: PRNGKeyArray, **options: Unpack[HeadOptions]) -> LearnedAggregator:
    """LOpt: the mean delta, the parameter and the time, 13 features; its only state is the round number.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.HeadOptions`][].

    ??? cite "Source"
        LOpt-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return LearnedAggregator(with_mlp((), ft.Concat(ft.Gradient(), ft.Parameter()), key=key, **options))
