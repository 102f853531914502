import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .._types import typechecked


class LabelledImages(eqx.Module):
    """Images and their classes, in memory: on an accelerator they are gathered where they are used."""

    images: UInt8[Array, "n ..."] | Float[Array, "n ..."]
    labels: Int[Array, " n"]


class WorkerShards(eqx.Module):
    """Which training examples belong to which worker.

    **Arguments:**

    - `index`: places in `"train"`, those of the first worker first.
    - `start`, `count`: where each worker's places begin in `index`, and how many there are.
    """

    index: Int[Array, " n"]
    start: Int[Array, " workers"]
    count: Int[Array, " workers"]


class ImageDataset(eqx.Module):
    """Named splits of labelled images, with the statistics that normalize them.

    **Arguments:**

    - `splits`: at least `"train"`; all images of one shape and dtype, `[height, width]` or `[height, width, channels]`.
    - `num_classes`: labels lie in `[0, num_classes)`.
    - `mean`, `std`: of the training images' pixels: one number, or one for each channel of colour images.
    - `shards`: where training examples belong to workers, from [`lo_components.data.dirichlet_shards`][].
    """

    splits: dict[str, LabelledImages]
    num_classes: int = eqx.field(static=True)
    mean: float | tuple[float, ...] = eqx.field(static=True)
    std: float | tuple[float, ...] = eqx.field(static=True)
    shards: WorkerShards | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.splits["train"].images.shape[1:]


def normalize(images, mean: float | tuple[float, ...], std: float | tuple[float, ...]):
    """`(images - mean) / std` in float32, for JAX and NumPy arrays alike; tuples go along the last axis."""
    if isinstance(mean, tuple) or isinstance(std, tuple):
        axes = (1,) * (images.ndim - 1) + (-1,)
        offset = np.reshape(mean, axes).astype(np.float32)
        scale = np.reshape(1.0 / np.asarray(std), axes).astype(np.float32)
    else:
        offset, scale = mean, 1.0 / std
    return (images.astype(np.float32) - offset) * scale


@typechecked
def image_dataset(splits: dict[str, tuple[np.ndarray, np.ndarray]], *, num_classes: int, name: str) -> ImageDataset:
    """An `ImageDataset` from NumPy arrays, checked.

    Images `[n, height, width, channels]` are normalized by each channel's mean and deviation, others by one of each.

    **Arguments:**

    - `splits`: `(images, labels)` by name; needs `"train"`. Images are `uint8` or floating point, `[n, ...]`.
    - `num_classes`: the number of classes.
    - `name`: what error messages call the data, for instance its folder.

    Raises `ValueError` where counts do not match, labels are not integers in range, a split is empty, a pixel is not
    finite, or all pixels, or all of one channel, are equal.
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
            raise ValueError(f"{name}: split '{split}' holds pixels that are NaN or infinite.")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name}: split '{split}' has labels from {labels.min()} to {labels.max()}; expected 0 to "
                f"{num_classes - 1}."
            )
    mean, std = _statistics(splits["train"][0], name)
    return ImageDataset(
        {
            split: LabelledImages(jnp.asarray(_compact(images)), jnp.asarray(labels, jnp.int32))
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
    # From histograms: they are exact, and no floating-point copy of the images is made.
    counts = np.zeros((train.shape[-1], 256), np.int64)
    for start in range(0, len(train), 1024):
        for channel, histogram in enumerate(counts):
            histogram += np.bincount(train[start : start + 1024, ..., channel].ravel(), minlength=256)
    share, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = share @ values
    return mean, np.sqrt(np.sum(share * np.square(values - mean[:, None]), axis=1))


def _compact(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else images.astype(np.float32)
