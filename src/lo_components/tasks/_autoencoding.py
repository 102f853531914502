import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..data import ImageDataset, one_split, sample_batch, take_batch
from ..parametrization import AbstractParametrization, WidthSpec
from ._base import AbstractMeasuredTask
from ._model import AbstractModelTask, TrainedModel, over_split
from ._supervised import ImageBatch


class Autoencoding(AbstractModelTask[ImageBatch], AbstractMeasuredTask[ImageBatch]):
    """Reconstruct images, whose pixels are in [0, 1]. The loss is the mean squared error over pixels and images.

    In meta-losses, per-step losses are clipped at 1.
    """

    dataset: ImageDataset
    trained: TrainedModel
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        dataset: ImageDataset,
        build: Callable[[PRNGKeyArray], Any],
        *,
        widths: PyTree[WidthSpec] | None = None,
        parametrization: AbstractParametrization | None = None,
        batch_size: int = 128,
    ):
        """**Arguments:**

        - `dataset`: the images, kept on the device; they are divided by the largest pixel of the training images.
            Labels are ignored.
        - `build`: maps a key to a model, which maps one image to its `[pixels]`.
        - `widths`, `parametrization`: as in [`lo_components.tasks.ImageClassification`][].
        - `batch_size`: images per step, sampled with replacement.

        Raises `ValueError` if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.dataset = dataclasses.replace(dataset, mean=0.0, std=jnp.max(dataset.splits["train"].images))
        self.trained = TrainedModel(build, parametrization, widths)
        self.batch_size = batch_size

    @property
    def max_loss(self) -> float:
        return 1.0

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> ImageBatch:
        return sample_batch(self.dataset, self.batch_size, split=split, worker=worker, key=key)

    def loss(self, params: Params, batch: ImageBatch, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return jnp.mean(self._errors(params, batch))

    def metrics(self, params: Params, *, split: str, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
        """The mean squared error `"loss"` of `params` on `split`."""
        count = one_split(self.dataset.splits, split).labels.shape[0]
        errors = over_split(
            lambda index: self._errors(params, take_batch(self.dataset, index, split=split)), count, self.batch_size
        )
        return {"loss": jnp.mean(errors)}

    def _errors(self, params: Params, batch: ImageBatch) -> Float[Array, " batch"]:
        images, _ = batch
        outputs = jax.vmap(self.model(params))(images)
        return jnp.mean(jnp.square(images.reshape(outputs.shape) - outputs), axis=-1)
