"""The ten tasks of the suite. Each takes at most a few milliseconds per step of Adam on one core."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

import lo_components as loc
from lo_components.parametrization import SP, AbstractParametrization, Axis

from . import data
from .models import NormalizedMLP


@dataclasses.dataclass(frozen=True)
class Growth:
    """How models are initialized, and which updates learners make in them.

    **Arguments:**

    - `parametrization`: `SP()` or `MuP()`.
    - `base_width`: the width at which all multipliers of muP are 1, that of the meta-training of a learned optimizer.
        `None` for the absolute convention of the papers.
    - `base_in_size`: likewise the number of inputs of an MLP. `None`: inputs do not count as growing.
    """

    parametrization: AbstractParametrization = SP()
    base_width: int | None = 32
    base_in_size: int | None = 64


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What defines a task: its name, the name of its data, the function that builds it, and the sizes of the model."""

    name: str
    data: str
    make: Callable[..., loc.tasks.AbstractMeasuredTask]
    sizes: dict[str, Any]

    def build(self, folder: Path, growth: Growth = Growth()) -> loc.tasks.AbstractMeasuredTask:
        """The task with the data of a folder."""
        return self.make(data.read(self.data, folder), growth, **self.sizes)

    def definition(self, folder: Path) -> dict[str, Any]:
        """What results depend on, as JSON."""
        return {
            "name": self.name,
            "model": self.make.__name__,
            "sizes": self.sizes,
            "data": _fingerprint(self.data, folder),
            "version": 1,  # of the functions in this file; change it with them
        }

    def digest(self, folder: Path) -> np.ndarray:
        """A hash of the definition: 32 bytes."""
        text = json.dumps(self.definition(folder), sort_keys=True)
        return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


@functools.cache
def _fingerprint(name: str, folder: Path) -> str:
    return data.fingerprint(data.read(name, folder))


def mlp(dataset, growth, **sizes):
    return loc.tasks.mlp_classification(
        dataset,
        parametrization=growth.parametrization,
        base_width=growth.base_width,
        base_in_size=growth.base_in_size,
        **sizes,
    )


def normalized_mlp(dataset, growth, *, width, depth, batch_size):
    sizes = dict(width=width, depth=depth, **_common(growth))
    build = eqx.Partial(_built, NormalizedMLP, (_inputs(dataset, growth), dataset.num_classes), sizes)
    return loc.tasks.ImageClassification(dataset, build, batch_size=batch_size)


def autoencoder(dataset, growth, *, width, batch_size):
    return loc.tasks.image_autoencoding(
        dataset, width=width, base_in_size=growth.base_in_size, batch_size=batch_size, **_common(growth)
    )


def cnn(dataset, growth, **sizes):
    return loc.tasks.cnn_classification(dataset, **_common(growth), **sizes)


def resnet(dataset, growth, *, blocks, **sizes):
    return loc.tasks.resnet_classification(dataset, blocks=tuple(blocks), **_common(growth), **sizes)


def vit(dataset, growth, **sizes):
    return loc.tasks.vit_classification(dataset, **_common(growth), **sizes)


def transformer(dataset, growth, **sizes):
    return loc.tasks.language_modeling(dataset, positions=True, **_common(growth), **sizes)


def _common(growth: Growth) -> dict[str, Any]:
    return dict(parametrization=growth.parametrization, base_width=growth.base_width)


def _inputs(dataset: loc.data.ImageDataset, growth: Growth) -> Axis:
    pixels = math.prod(dataset.image_shape)
    return Axis.fixed(pixels) if growth.base_in_size is None else Axis.growing(pixels, growth.base_in_size)


def _built(model, args, sizes, key):
    return model(*args, key=key, **sizes)


_TRANSFORMER = dict(width=64, depth=2, heads=4, batch_size=8)
TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec("mlp-8x8", "fashion_8x8", mlp, dict(width=32, depth=1, batch_size=128)),
        TaskSpec("mlp-28x28", "fashion_28x28", mlp, dict(width=128, depth=2, batch_size=128)),
        TaskSpec("deep-mlp-8x8", "fashion_8x8", mlp, dict(width=32, depth=2, batch_size=128)),
        TaskSpec("norm-mlp-28x28", "fashion_28x28", normalized_mlp, dict(width=64, depth=3, batch_size=128)),
        TaskSpec("autoencoder", "fashion_28x28", autoencoder, dict(width=128, batch_size=128)),
        TaskSpec("cnn", "fashion_28x28", cnn, dict(width=32, depth=3, batch_size=32)),
        TaskSpec("resnet", "cifar_16x16", resnet, dict(blocks=[1, 1, 1], width=32, batch_size=16)),
        TaskSpec("vit", "cifar_16x16", vit, dict(patch_size=4, width=64, depth=2, heads=4, batch_size=16)),
        TaskSpec("lm-news", "lm1b", transformer, _TRANSFORMER),
        TaskSpec("lm-shakespeare", "shakespeare", transformer, _TRANSFORMER),
    )
}
