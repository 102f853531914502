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
    """Sample a batch uniformly with replacement, on the device; works under `jax.jit`.

    **Arguments:**

    - `dataset`: the images.
    - `batch_size`: the number of examples.
    - `split`: the split to sample from.
    - `worker`: the worker whose shard of `"train"` to sample from, modulo the number of shards; ignored for other
        splits and for data sets without shards.
    - `key`: the PRNG key.

    **Returns:** normalized images and their labels.

    Raises `ValueError` if there is no such split.
    """
    shards = dataset.shards
    if worker is None or shards is None or split != "train":
        count = one_split(dataset.splits, split).labels.shape[0]
        return take_batch(dataset, _sample_index(count, batch_size, key), split=split)
    worker = worker % len(shards.count)
    offset = _sample_index(shards.count[worker].astype(jnp.uint32), batch_size, key).astype(jnp.int32)
    return take_batch(dataset, shards.index[shards.start[worker] + offset])


def take_batch(
    dataset: ImageDataset, index: Integer[Array, " batch"], *, split: str = "train"
) -> tuple[Float[Array, "batch ..."], Int[Array, " batch"]]:
    """Take the examples at given indices.

    **Arguments:**

    - `dataset`: the images.
    - `index`: indices into the split; those beyond its end give the last example.
    - `split`: the split to take from.

    **Returns:** normalized images and their labels.

    Raises `ValueError` if there is no such split.
    """
    examples = one_split(dataset.splits, split)
    return normalize(examples.images[index], dataset.mean, dataset.std), examples.labels[index]


def sample_tokens(
    dataset: TokenDataset, batch_size: int, *, split: str = "train", key: PRNGKeyArray
) -> Int[Array, "batch length"]:
    """Sample sequences uniformly with replacement, on the device; works under `jax.jit`.

    **Arguments:**

    - `dataset`: the encoded text.
    - `batch_size`: the number of sequences.
    - `split`: the split to sample from.
    - `key`: the PRNG key.

    **Returns:** token ids.

    Raises `ValueError` if there is no such split.
    """
    tokens = one_split(dataset.splits, split)
    return tokens[_sample_index(tokens.shape[0], batch_size, key)]


def one_split(splits: dict[str, SplitT], split: str) -> SplitT:
    """Look up a split by name.

    **Arguments:**

    - `splits`: the splits of a data set.
    - `split`: the name of one.

    **Returns:** `splits[split]`.

    Raises `ValueError`, listing the names, if there is no such split.
    """
    if split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {split!r}.")
    return splits[split]


def _sample_index(count: int | Integer[Array, ""], batch_size: int, key: PRNGKeyArray) -> Integer[Array, " batch"]:
    # The modulo bias, at most `count / 2**32`, is negligible.
    return jax.random.bits(key, (batch_size,), "uint32") % jnp.uint32(count)
