"""The row format of CIFAR and downsampled ImageNet: all red values of an image, then green, then blue."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

Batch = tuple[UInt8[np.ndarray, "n height width 3"], Int[np.ndarray, " n"]]


def checked_batch(path: Path, data: Any, labels: Any, *, size: int, first: int, last: int) -> Batch:
    """Images `[n, size, size, 3]` and labels from 0, from the `data` and `labels` that the file at `path` holds.

    The file may hold objects of any type, so they are checked: `data` must have one image per row, and the labels must
    be between `first`, which becomes label 0, and `last`.
    """
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise ValueError(f"`{path}`: `data` is not a matrix of bytes with one image per row.")
    if data.shape[1] != 3 * size * size:
        raise ValueError(f"`{path}` has rows of {data.shape[1]} bytes; images of size {size} have {3 * size * size}.")
    if isinstance(labels, list) and all(type(label) is int and abs(label) < 2**31 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`{path}`: the labels are not a vector of integers.")
    if len(data) != len(labels):
        raise ValueError(f"`{path}` has {len(data)} images but {len(labels)} labels.")
    if len(labels) and (labels.min() < first or labels.max() > last):
        raise ValueError(f"`{path}` has labels from {labels.min()} to {labels.max()}; expected {first} to {last}.")
    return data.reshape(-1, 3, size, size).transpose(0, 2, 3, 1), labels.astype(np.int64) - first


def concatenate(batches: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """One batch from several."""
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
