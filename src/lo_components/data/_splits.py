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
    """Move disjoint random parts of `"train"` into splits of their own.

    Inner training, its validation and the validation of meta-training then never share an example. Statistics stay
    those of the data set that was given.

    **Arguments:**

    - `dataset`: images or text.
    - `fractions`: shares of `"train"` by the names of the new splits, for instance
        `{"inner_valid": 0.1, "outer_valid": 0.1}`.
    - `seed`: for the draw; the order of `fractions` has no influence.

    Raises `ValueError` where a name is taken, a share is not between 0 and 1, nothing would be left of a split, or
    examples belong to workers already.
    """
    taken = sorted(fractions.keys() & dataset.splits.keys())
    if taken:
        raise ValueError(f"There is a split called {taken[0]!r} already.")
    if isinstance(dataset, ImageDataset) and dataset.shards is not None:
        raise ValueError("Training examples belong to workers already: split off first, then call `dirichlet_shards`.")
    if not all(0 < share < 1 for share in fractions.values()):
        raise ValueError(f"`fractions` must be between 0 and 1, got {fractions}.")
    train = dataset.splits["train"]
    total = len(jax.tree.leaves(train)[0])
    counts = {name: round(fractions[name] * total) for name in sorted(fractions)}
    if not all(counts.values()) or sum(counts.values()) >= total:
        raise ValueError(f"Of {total} examples, {counts} cannot be split off.")
    parts = np.split(np.random.default_rng(seed).permutation(total), np.cumsum(list(counts.values())))
    splits = {
        name: jax.tree.map(lambda array, index=np.sort(index): array[index], train)
        for name, index in zip((*counts, "train"), parts, strict=True)
    }
    return dataclasses.replace(dataset, splits=dataset.splits | splits)
