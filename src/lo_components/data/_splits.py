import dataclasses
from typing import TypeVar

import jax
import numpy as np

from .._types import typechecked
from ._images import ImageDataset
from ._tokens import TokenDataset

DatasetT = TypeVar("DatasetT", ImageDataset, TokenDataset)


@typechecked
def split_off(dataset: DatasetT, fractions: dict[str, float], *, seed: int = 0) -> DatasetT:
    """Move random, disjoint parts of `"train"` to new splits, for instance to separate inner from outer validation.

    **Arguments:**

    - `dataset`: images or text.
    - `fractions`: the fraction of `"train"` for each new split, for instance
        `{"inner_valid": 0.1, "outer_valid": 0.1}`; the order does not matter.
    - `seed`: the seed of the random partition.

    **Returns:** the data set with the new splits and a smaller `"train"`. Images are still normalized by the mean and
    standard deviation of the original training set.

    Raises `ValueError` if a split of that name exists, a fraction is not between 0 and 1, a split would be empty, or
    the training examples are already partitioned among workers.
    """
    existing = sorted(fractions.keys() & dataset.splits.keys())
    if existing:
        raise ValueError(f"There is a split called {existing[0]!r} already.")
    if isinstance(dataset, ImageDataset) and dataset.shards is not None:
        raise ValueError(
            "The training examples are partitioned among workers: call `split_off` before `dirichlet_shards`."
        )
    if not all(0 < fraction < 1 for fraction in fractions.values()):
        raise ValueError(f"`fractions` must be between 0 and 1, got {fractions}.")
    train = dataset.splits["train"]
    total = len(jax.tree.leaves(train)[0])
    counts = {name: round(fractions[name] * total) for name in sorted(fractions)}
    if not all(counts.values()) or sum(counts.values()) >= total:
        raise ValueError(f"`fractions` would split {total} examples into {counts} and leave a split empty.")
    parts = np.split(np.random.default_rng(seed).permutation(total), np.cumsum(list(counts.values())))
    splits = {
        name: jax.tree.map(lambda array, index=np.sort(index): array[index], train)
        for name, index in zip((*counts, "train"), parts, strict=True)
    }
    return dataclasses.replace(dataset, splits=dataset.splits | splits)
