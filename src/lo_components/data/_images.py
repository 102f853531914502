from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from .._types import typechecked


def _float32(x: Any) -> Array:
    return jnp.asarray(x, jnp.float32)


class LabeledImages(eqx.Module):
    """Images and their classes, in memory.

    **Arguments:**

    - `images`: bytes or floating-point numbers.
    - `labels`: the class of each image.
    """

    images: UInt8[Array, "n ..."] | Float[Array, "n ..."]
    labels: Int[Array, " n"]


class WorkerShards(eqx.Module):
    """A partition of the training examples into one shard per worker.

    **Arguments:**

    - `index`: indices into `"train"`, sorted by worker.
    - `start`: the position in `index` at which each worker's shard begins.
    - `count`: the number of examples in each worker's shard.
    """

    index: Int[Array, " n"]
    start: Int[Array, " workers"]
    count: Int[Array, " workers"]


class ImageDataset(eqx.Module):
    """Labeled images in named splits, with the statistics to normalize them.

    **Arguments:**

    - `splits`: by name, `"train"` at least; all images have the same shape, `[height, width]` or
        `[height, width, channels]`.
    - `num_classes`: labels are in `[0, num_classes)`.
    - `mean`: the mean of the training pixels: one number, or one for each channel of color images.
    - `std`: the standard deviation of the training pixels, likewise.
    - `shards`: the workers' shards of `"train"`, if any, from [`lo_components.data.dirichlet_shards`][].
    """

    splits: dict[str, LabeledImages]
    num_classes: int = eqx.field(static=True)
    mean: Float[Array, "*channels"] = eqx.field(converter=_float32)
    std: Float[Array, "*channels"] = eqx.field(converter=_float32)
    shards: WorkerShards | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.splits["train"].images.shape[1:]


def normalize(images, mean: Float[Array | np.ndarray, "*channels"], std: Float[Array | np.ndarray, "*channels"]):
    """`(images - mean) / std` in float32, for JAX and NumPy arrays."""
    if mean.ndim or std.ndim:
        axes = (1,) * (images.ndim - 1) + (-1,)
        mean, std = mean.reshape(axes), std.reshape(axes)
    return (images.astype(np.float32) - mean) * (1.0 / std)


@typechecked
def image_dataset(
    splits: dict[str, tuple[Shaped[np.ndarray, "_ ..."], Shaped[np.ndarray, "..."]]], *, num_classes: int, name: str
) -> ImageDataset:
    """Check NumPy arrays and make them an `ImageDataset`.

    **Arguments:**

    - `splits`: `(images, labels)` by name, `"train"` among them. Images are `[n, ...]`; all but `uint8` are converted
        to `float32`.
    - `num_classes`: the number of classes.
    - `name`: the name of the data in error messages, for instance its folder.

    **Returns:** the data set, with the mean and standard deviation of the training images: per channel if they are
    `[n, height, width, channels]`, else over all pixels.

    Raises `ValueError` if `"train"` is missing, a split is empty, counts or shapes differ, labels are not integers in
    `[0, num_classes)`, a pixel is not finite, or the training pixels (of one channel) are all equal.
    """
    if "train" not in splits:
        raise ValueError(f"{name}: there is no split called 'train' (found: {', '.join(splits) or 'none'}).")
    for split, (images, labels) in splits.items():
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{name}: split '{split}' has labels of dtype {labels.dtype} and shape {labels.shape}; expected a "
                "vector of integers."
            )
        if len(images) != len(labels):
            raise ValueError(f"{name}: split '{split}' has {len(images)} images but {len(labels)} labels.")
        if not len(images):
            raise ValueError(f"{name}: split '{split}' is empty.")
        if images.shape[1:] != splits["train"][0].shape[1:]:
            raise ValueError(f"{name}: split '{split}' has images of shape {images.shape[1:]}, unlike 'train'.")
        if not np.issubdtype(images.dtype, np.integer) and not np.isfinite(images).all():
            raise ValueError(f"{name}: split '{split}' has pixels that are NaN or infinite.")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name}: split '{split}' has labels from {labels.min()} to {labels.max()}; expected 0 to "
                f"{num_classes - 1}."
            )
    mean, std = _statistics(splits["train"][0], name)
    return ImageDataset(
        {
            split: LabeledImages(jnp.asarray(_compact(images)), jnp.asarray(labels, jnp.int32))
            for split, (images, labels) in splits.items()
        },
        num_classes,
        mean,
        std,
    )


def _statistics(train: np.ndarray, name: str) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    if train.ndim != 4:
        if train.min() == train.max():
            raise ValueError(f"{name}: all training pixels are equal.")
        return float(train.mean(dtype=np.float64)), float(train.std(dtype=np.float64))
    if any(train[..., channel].min() == train[..., channel].max() for channel in range(train.shape[-1])):
        raise ValueError(f"{name}: all training pixels of one channel are equal.")
    mean, std = _channel_statistics(train)
    return tuple(mean.tolist()), tuple(std.tolist())


def _channel_statistics(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if train.dtype != np.uint8:
        return train.mean((0, 1, 2), dtype=np.float64), train.std((0, 1, 2), dtype=np.float64)
    # Histograms are exact, and unlike `train.std` they need no floating-point copy of the images.
    counts = np.zeros((train.shape[-1], 256), np.int64)
    for start in range(0, len(train), 1024):
        for channel, histogram in enumerate(counts):
            histogram += np.bincount(train[start : start + 1024, ..., channel].ravel(), minlength=256)
    frequency, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = frequency @ values
    return mean, np.sqrt(np.sum(frequency * np.square(values - mean[:, None]), axis=1))


def _compact(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else images.astype(np.float32)
