import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..data import ImageDataset, one_split, sample_batch, take_batch
from ..nn import BatchNorm
from ..parametrization import AbstractParametrization, WidthSpec
from ._base import AbstractMeasuredTask
from ._model import AbstractModelTask, TrainedModel, over_split

REFERENCE_SIZE = 512  # number of training images for the statistics of batch normalization

ImageBatch = tuple[Float[Array, "batch ..."], Int[Array, " batch"]]


class ImageClassification(AbstractModelTask[ImageBatch], AbstractMeasuredTask[ImageBatch]):
    r"""Classify images. The loss is the mean softmax cross-entropy of a model's logits.

    In meta-losses, per-step losses are clipped at $1.5 \ln C$ for $C$ classes. The model is called under
    `jax.vmap(..., axis_name="batch")`.
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

        - `dataset`: the images, kept on the device.
        - `build`: maps a key to a model, which maps one image to `[num_classes]` logits. Tasks share compiled programs
            if it is the same function, or an `equinox.Partial` of it with equal arguments.
        - `widths`, `parametrization`: `None` for models made of layers of [`lo_components.nn`][], which declare both.
            For other models, `widths` tells how each array grows, for instance from
            [`lo_components.parametrization.infer_widths`][], and `parametrization` is `Absorbed(MuP())`, which
            re-initializes the model, or `SP()`.
        - `batch_size`: images per step, sampled with replacement.

        Raises `ValueError` if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.dataset = dataset
        self.trained = TrainedModel(build, parametrization, widths)
        self.batch_size = batch_size

    @property
    def max_loss(self) -> float:
        return 1.5 * math.log(self.dataset.num_classes)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> ImageBatch:
        return sample_batch(self.dataset, self.batch_size, split=split, worker=worker, key=key)

    def loss(self, params: Params, batch: ImageBatch, *, key: PRNGKeyArray) -> Float[Array, ""]:
        images, labels = batch
        logits = jax.vmap(self.model(params), axis_name="batch")(images)
        # One-hot labels keep gathers and scatters out of the compiled step.
        one_hot = jax.nn.one_hot(labels, self.dataset.num_classes, dtype=jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy(logits, one_hot))

    def metrics(self, params: Params, *, split: str, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
        """The mean cross-entropy `"loss"` and the fraction of correct predictions `"accuracy"` of `params` on `split`.

        Models with batch normalization use the statistics of 512 random training images, not of the images to classify.
        """
        model = self.model(params)
        normalized = any(isinstance(x, BatchNorm) for x in jax.tree.leaves(model, is_leaf=_is_batch_norm))
        count, size = one_split(self.dataset.splits, split).labels.shape[0], self.batch_size
        reference = sample_batch(self.dataset, REFERENCE_SIZE, key=key)[0] if normalized else None

        def chunk(index: Int[Array, " batch"]):
            images, labels = take_batch(self.dataset, index, split=split)
            if reference is None:
                logits = jax.vmap(model, axis_name="batch")(images)
            else:
                weights = jnp.concatenate([jnp.ones(REFERENCE_SIZE), jnp.zeros(size)])
                both = jnp.concatenate([reference, images])
                logits = jax.vmap(lambda x, w: model(x, weight=w), axis_name="batch")(both, weights)[REFERENCE_SIZE:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses, jnp.argmax(logits, axis=-1) == labels

        losses, right = over_split(chunk, count, size)
        return {"loss": jnp.mean(losses), "accuracy": jnp.mean(right.astype(jnp.float32))}


def _is_batch_norm(node: Any) -> bool:
    return isinstance(node, BatchNorm)
