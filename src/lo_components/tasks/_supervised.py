import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params, Scales
from ..data import ImageDataset, sample_batch
from ..nn import declared_widths
from ..parametrization import AbstractParametrization
from ._base import AbstractTask

ImageBatch = tuple[Float[Array, "batch ..."], Int[Array, " batch"]]


class ImageClassification(AbstractTask[ImageBatch]):
    r"""Classify images by softmax regression on a model's outputs, with the mean cross-entropy as loss.

    Per-step meta-losses are clipped at $1.5 \ln C$ for $C$ classes.
    """

    dataset: ImageDataset
    model: PyTree  # everything of the model but its arrays
    update_scales: Scales | None
    build: Callable[[PRNGKeyArray], Any] = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        dataset: ImageDataset,
        build: Callable[[PRNGKeyArray], Any],
        *,
        parametrization: AbstractParametrization,
        batch_size: int = 128,
    ):
        """**Arguments:**

        - `dataset`: the images, kept on the device.
        - `build`: from a key to a model of [`lo_components.nn`][]; the model maps one image to `[num_classes]` logits.
        - `parametrization`: the one that `build` gives the model; its update scales become the task's.
        - `batch_size`: images per step, drawn with replacement.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.dataset = dataset
        self.build = build
        self.batch_size = batch_size
        shapes = eqx.filter_eval_shape(build, jax.random.key(0))
        self.model = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))[1]
        self.update_scales = parametrization.update_scales(declared_widths(shapes))

    @property
    def max_loss(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1.5 * math.log(self.dataset.num_classes)

    def init(self, *, key: PRNGKeyArray) -> Params:
        return eqx.filter(self.build(key), eqx.is_inexact_array)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> ImageBatch:
        return sample_batch(self.dataset, self.batch_size, split=split, key=key)

    def loss(self, params: Params, batch: ImageBatch, *, key: PRNGKeyArray) -> Float[Array, ""]:
        images, labels = batch
        logits = jax.vmap(eqx.combine(params, self.model))(images)
        # One-hot labels keep gathers and scatters out of the compiled step.
        one_hot = jax.nn.one_hot(labels, self.dataset.num_classes, dtype=jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy(logits, one_hot))
