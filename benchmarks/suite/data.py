"""The data of the suite, read from one folder; equal files give equal arrays in the same order.

The folder contains `fashion_mnist/` (the four idx files), `cifar10/` (`cifar-10-batches-py/`, or an archive of it),
`lm1b/heldout-monolingual.tokenized.shuffled/` (shards 10 to 13) and `tinyshakespeare/input.txt`. Of a complete
CIFAR-10, 8,068 images are taken to train (4,000 of the first batch and 1,017 of each other) and 1,017 to test.
"""

import functools
import hashlib
from pathlib import Path

import jax
import numpy as np

import lo_components as loc

HELD_OUT = 2000  # images of a held-out split, to measure the loss often
HELD_OUT_SEQUENCES = 512
LENGTH = 33  # bytes per sequence, which make 32 predictions


def read(name: str, folder: Path) -> loc.data.ImageDataset | loc.data.TokenDataset:
    """One of the data sets below. Tasks of the same data share its arrays."""
    return _read(name, folder.expanduser().resolve())


@functools.cache
def _read(name: str, folder: Path):
    return _READERS[name](folder)


def fingerprint(dataset: loc.data.ImageDataset | loc.data.TokenDataset) -> str:
    """A hash of all arrays of a data set."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(dataset):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def fashion_28x28(folder: Path) -> loc.data.ImageDataset:
    """Fashion-MNIST, pixels in [0, 1]; for training the 48,000 images of learned_optimization's training split."""
    found = loc.data.fashion_mnist(folder / "fashion_mnist").splits
    order = sorted(range(len(found["train"].labels)), key=lambda i: hashlib.md5(f"train{i}".encode()).hexdigest())
    index = {"train": np.array(order[: len(order) * 4 // 5]), "test": np.arange(HELD_OUT)}
    splits = {split: jax.tree.map(lambda x, i=i: x[i], found[split]) for split, i in index.items()}
    return loc.data.ImageDataset(splits, 10, 0.0, 255.0)


def fashion_8x8(folder: Path) -> loc.data.ImageDataset:
    """The same images, shrunk bilinearly without antialiasing, as `tf.image.resize` does."""
    large = read("fashion_28x28", folder)
    splits = {
        split: loc.data.LabeledImages(jax.numpy.asarray(_bilinear(np.asarray(part.images))), part.labels)
        for split, part in large.splits.items()
    }
    return loc.data.ImageDataset(splits, 10, 0.0, 255.0)


def _bilinear(images: np.ndarray) -> np.ndarray:
    """28x28 to 8x8: the values at positions 3.5 i + 1.25, interpolated along both axes."""
    position = 3.5 * np.arange(8) + 1.25
    low = np.floor(position).astype(int)
    part = (position - low).astype(np.float32)
    images = images.astype(np.float32)
    rows = images[:, low] * (1 - part[:, None]) + images[:, low + 1] * part[:, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


def cifar_16x16(folder: Path) -> loc.data.ImageDataset:
    """CIFAR-10 images, shrunk to 16x16 by averaging blocks and normalized by channel."""
    found = loc.data.cifar10(folder / "cifar10").splits
    rows = np.arange(len(found["train"].labels))
    if len(rows) == 50_000:
        rows = np.concatenate([rows[:4000], *(rows[10_000 * i :][:1017] for i in range(1, 5))])
    index = {"train": rows, "test": np.arange(1017)}
    splits = {}
    for split, i in index.items():
        images = np.asarray(found[split].images)[i]
        splits[split] = loc.data.pooled(images, 16), np.asarray(found[split].labels)[i]
    return loc.data.image_dataset(splits, num_classes=10, name=str(folder))


def lm1b(folder: Path) -> loc.data.TokenDataset:
    """Bytes of news sentences: three held-out shards of LM1B to train, a fourth to test."""
    shards = [
        folder / f"lm1b/heldout-monolingual.tokenized.shuffled/news.en.heldout-000{i}-of-00050" for i in range(10, 14)
    ]
    return _bytes({"train": list(loc.data.read_lines(shards[:3])), "test": list(loc.data.read_lines(shards[3:]))})


def shakespeare(folder: Path) -> loc.data.TokenDataset:
    """Bytes of TinyShakespeare, the last 5 % of its lines to test."""
    lines = list(loc.data.read_lines(folder / "tinyshakespeare/input.txt"))
    end = len(lines) - len(lines) // 20
    return _bytes({"train": lines[:end], "test": lines[end:]})


def _bytes(texts: dict[str, list[str]]) -> loc.data.TokenDataset:
    dataset = loc.data.text_dataset(texts, loc.data.ByteTokenizer(), length=LENGTH)
    splits = {"train": dataset.splits["train"], "test": dataset.splits["test"][:HELD_OUT_SEQUENCES]}
    return loc.data.TokenDataset(splits, dataset.vocab_size, dataset.pad_id)


_READERS = {
    "fashion_28x28": fashion_28x28,
    "fashion_8x8": fashion_8x8,
    "cifar_16x16": cifar_16x16,
    "lm1b": lm1b,
    "shakespeare": shakespeare,
}
