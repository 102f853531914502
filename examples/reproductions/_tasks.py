"""The data and the tasks of the scripts in this folder."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lo_components as loc

DATA = "folder with `fashion_mnist` (idx files), `cifar10` (batches, or an archive) and `lm1b` (shards)"
STAND_INS = "digits in place of all images, and Python's documentation in place of LM1B"


def kind_of(data: Path | None) -> str:
    return STAND_INS if data is None else "real"


class Task(NamedTuple):
    """A task, made by `make(parametrization=...)`, and the number of steps or rounds of its training."""

    make: Callable
    steps: int


@functools.cache
def images(name: str, data: Path | None, pixels: int):
    """`fashion_mnist` or `cifar10`, averaged to `pixels` x `pixels`; without a folder, digits."""
    if data is None:
        return loc.data.digits()
    dataset = {"fashion_mnist": loc.data.fashion_mnist, "cifar10": loc.data.cifar10}[name](data / name)
    splits = {split: (pooled(x.images, pixels), np.asarray(x.labels)) for split, x in dataset.splits.items()}
    return loc.data.image_dataset(splits, num_classes=10, name=f"{name}, {pixels}x{pixels}")


def pooled(images, pixels: int):
    """Images averaged to `pixels` x `pixels` and rounded."""
    return np.round(loc.data.pooled(images, pixels)).astype(np.uint8)


@functools.cache
def text(data: Path | None, length: int):
    """The bytes of LM1B; without a folder, of Python's documentation."""
    tokenizer = loc.data.ByteTokenizer()
    if data is None:
        return loc.data.python_docs(tokenizer, length=length)
    return loc.data.lm1b(data / "lm1b", tokenizer, length=length)


def among(known: dict, names: list) -> dict:
    """The entries of `known` with these names."""
    for name in names:
        if name not in known:
            raise ValueError(f"There is no {name!r}; choose from {', '.join(map(repr, known))}.")
    return {name: known[name] for name in names}


def by_width(widths: list[int], steps: list[int]) -> dict[int, int]:
    """The number of steps at each width; one number stands for all widths."""
    steps = steps * len(widths) if len(steps) == 1 else steps
    if len(steps) != len(widths):
        raise ValueError(f"There are {len(widths)} widths, but {len(steps)} numbers of steps.")
    return dict(zip(widths, steps, strict=True))


def mlp(dataset, width: int, depth: int, batch_size: int, **options) -> Callable:
    sizes = dict(width=width, depth=depth, batch_size=batch_size)
    return functools.partial(loc.tasks.mlp_classification, dataset, **sizes, **options)


def vit(dataset, width: int, depth: int, batch_size: int) -> Callable:
    """A vision transformer with 16 patches."""
    sizes = dict(width=width, depth=depth, heads=4, patch_size=dataset.image_shape[0] // 4, batch_size=batch_size)
    return functools.partial(loc.tasks.vit_classification, dataset, **sizes)


def language(dataset, width: int, depth: int, batch_size: int) -> Callable:
    sizes = dict(width=width, depth=depth, heads=4, batch_size=batch_size)
    return functools.partial(loc.tasks.language_modeling, dataset, **sizes)
