import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .._types import typechecked
from ._images import ImageDataset, WorkerShards

_MAX_ATTEMPTS = 100


@typechecked
def dirichlet_shards(
    dataset: ImageDataset, num_workers: int, *, concentration: float | int, min_size: int = 10, seed: int = 0
) -> ImageDataset:
    r"""Partition the training examples among workers with heterogeneous class distributions, as in federated learning.

    For each class, the proportions of its examples that go to the workers are sampled from
    $\mathrm{Dirichlet}(\alpha, \dots, \alpha)$. At $\alpha = 0.1$ most workers have examples of only a few classes, at
    $\alpha = 100$ all have nearly the same distribution. Shards are disjoint and differ in size. Tasks sample
    `task.batch(worker=k)` from worker $k$'s shard; batches without `worker=` and other splits are not affected.

    **Arguments:**

    - `dataset`: images; shards that it has already are replaced.
    - `num_workers`: the number of workers.
    - `concentration`: $\alpha$, positive and below a million.
    - `min_size`: the smallest shard to accept; the partition is resampled until every worker has this many examples.
    - `seed`: the seed of the partition.

    **Returns:** the data set with its `shards` set.

    Raises `ValueError` if an argument is out of range, or if none of 100 partitions gives every worker `min_size`
    examples.

    ??? cite "Source"
        Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks* (arXiv 1905.12022), section 4;
        Hsu et al., *Measuring the Effects of Non-Identical Data Distribution* (arXiv 1909.06335).
    """
    if not 0 < concentration < 1e6:
        raise ValueError(f"`concentration` must be positive and below a million, got {concentration}.")
    for name, value, minimum in (("num_workers", num_workers, 1), ("min_size", min_size, 1), ("seed", seed, 0)):
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
    labels = np.asarray(dataset.splits["train"].labels)
    rng = np.random.default_rng(seed)
    for _ in range(_MAX_ATTEMPTS):
        workers = _sample_workers(labels, num_workers, concentration, rng)
        counts = np.bincount(workers, minlength=num_workers)
        if counts.min() >= min_size:
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            arrays = (jnp.asarray(x, jnp.int32) for x in (np.argsort(workers, kind="stable"), starts, counts))
            return dataclasses.replace(dataset, shards=WorkerShards(*arrays))
    raise ValueError(
        f"None of {_MAX_ATTEMPTS} partitions of {len(labels)} examples gave each of {num_workers} workers `min_size` = "
        f"{min_size}. Choose a larger `concentration`, fewer workers, or a smaller `min_size`."
    )


def _sample_workers(
    labels: Int[np.ndarray, " n"], num_workers: int, concentration: float, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Sample the worker of each example."""
    workers = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        index = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(num_workers, float(concentration)))
        ends = np.round(np.cumsum(proportions)[:-1] * len(index)).astype(np.int64)
        for worker, part in enumerate(np.split(index, ends)):
            workers[part] = worker
    return workers
