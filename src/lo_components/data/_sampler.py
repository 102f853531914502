from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from ._images import ImageDataset, normalize
from ._tokens import TokenDataset

SplitT = TypeVar("SplitT")


def sample_batch(
    dataset: ImageDataset,
    batch_size: int,
    *,
    split: str = "train",
    worker: Int[Array, ""] | None = None,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "batch ..."], Int[Array, " batch"]]:
    """A batch drawn uniformly with replacement, on the device, normalized after the gather.

    **Arguments:**

    - `dataset`: the data set.
    - `batch_size`: the number of examples.
    - `split`: which split to draw from.
    - `worker`: where training examples belong to workers, whose to draw; more workers than there are shards share them
        in turn.
    - `key`: for the draw.
    """
    shards = dataset.shards
    if worker is None or shards is None or split != "train":
        count = one_split(dataset.splits, split).labels.shape[0]
        return take_batch(dataset, _sample_index(count, batch_size, key), split=split)
    worker = worker % len(shards.count)
    place = _sample_index(shards.count[worker].astype(jnp.uint32), batch_size, key).astype(jnp.int32)
    return take_batch(dataset, shards.index[shards.start[worker] + place])


def take_batch(
    dataset: ImageDataset, index: Integer[Array, " batch"], *, split: str = "train"
) -> tuple[Float[Array, "batch ..."], Int[Array, " batch"]]:
    """The examples at the given places of a split, normalized.

    **Arguments:**

    - `dataset`: the data set.
    - `index`: places, from 0; beyond the end counts as the last.
    - `split`: which split to take them from.
    """
    examples = one_split(dataset.splits, split)
    return normalize(examples.images[index], dataset.mean, dataset.std), examples.labels[index]


def sample_tokens(
    dataset: TokenDataset, batch_size: int, *, split: str = "train", key: PRNGKeyArray
) -> Int[Array, "batch length"]:
    """Sequences drawn uniformly with replacement, on the device.

    **Arguments:**

    - `dataset`: the data set.
    - `batch_size`: the number of sequences.
    - `split`: which split to draw from.
    - `key`: for the draw.
    """
    tokens = one_split(dataset.splits, split)
    return tokens[_sample_index(tokens.shape[0], batch_size, key)]


def one_split(splits: dict[str, SplitT], split: str) -> SplitT:
    """One of a data set's splits.

    **Arguments:**

    - `splits`: by name.
    - `split`: the name.

    Raises `ValueError`, with the names there are, where there is no such split.
    """
    if split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {split!r}.")
    return splits[split]


def _sample_index(count: int | Integer[Array, ""], batch_size: int, key: PRNGKeyArray) -> Integer[Array, " batch"]:
    # The remainder's bias, at most the set's size over 2**32, is far below what a batch could show.
    return jax.random.bits(key, (batch_size,), "uint32") % jnp.uint32(count)
