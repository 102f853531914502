import dataclasses

import jax.numpy as jnp
import numpy as np

from .._types import typechecked
from ._images import ImageDataset, WorkerShards

_ATTEMPTS = 100


@typechecked
def dirichlet_shards(
    dataset: ImageDataset, num_workers: int, *, concentration: float | int, min_size: int = 10, seed: int = 0
) -> ImageDataset:
    r"""The data set with its training examples dealt out to workers, of each class in unequal shares.

    The shares of a class are drawn from $\mathrm{Dirichlet}(\alpha, \dots, \alpha)$, so workers differ in their classes
    and in how many examples they have: at $\alpha = 0.1$ most workers see few classes, at $\alpha = 100$ all nearly the
    same. No example belongs to two workers. Tasks give `task.batch(worker=k)` from worker $k$'s alone; batches for no
    worker, and those of other splits, stay as they were. The draw is repeated until every worker has enough.

    **Arguments:**

    - `dataset`: images, all of whose workers are alike.
    - `num_workers`: how many workers.
    - `concentration`: $\alpha$, positive, below a million.
    - `min_size`: how many examples each worker gets at least.
    - `seed`: for the draw.

    Raises `ValueError` where sizes are out of range, or no draw gave every worker enough.

    ??? cite "Source"
        Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks* (arXiv 1905.12022), section 4;
        Hsu et al., *Measuring the Effects of Non-Identical Data Distribution* (arXiv 1909.06335).
    """
    if not 0 < concentration < 1e6:
        raise ValueError(f"`concentration` must be positive and below a million, got {concentration}.")
    for name, value, least in (("num_workers", num_workers, 1), ("min_size", min_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    labels = np.asarray(dataset.splits["train"].labels)
    generator = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        owners = _dealt(labels, num_workers, concentration, generator)
        counts = np.bincount(owners, minlength=num_workers)
        if counts.min() >= min_size:
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            arrays = (jnp.asarray(x, jnp.int32) for x in (np.argsort(owners, kind="stable"), starts, counts))
            return dataclasses.replace(dataset, shards=WorkerShards(*arrays))
    raise ValueError(
        f"In {_ATTEMPTS} draws of {len(labels)} examples, none gave each of {num_workers} workers `min_size` = "
        f"{min_size}. Choose a larger `concentration`, fewer workers, or a smaller `min_size`."
    )


def _dealt(labels: np.ndarray, num_workers: int, concentration: float, generator: np.random.Generator) -> np.ndarray:
    """The worker of each example."""
    owners = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(num_workers, float(concentration)))
        ends = np.round(np.cumsum(shares)[:-1] * len(places)).astype(np.int64)
        for worker, part in enumerate(np.split(places, ends)):
            owners[part] = worker
    return owners
