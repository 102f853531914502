import gzip
import math
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


class LabelledImages(eqx.Module):
    """Images and their classes, in memory: on an accelerator they are gathered where they are used."""

    images: UInt8[Array, "n ..."] | Float[Array, "n ..."]
    labels: Int[Array, " n"]


class ImageDataset(eqx.Module):
    """Named splits of labelled images, with the statistics that normalize them.

    **Arguments:**

    - `splits`: at least `"train"`; all images of one shape and dtype.
    - `num_classes`: labels lie in `[0, num_classes)`.
    - `mean`, `std`: of the training images' pixels, subtracted and divided by after conversion to float32.
    """

    splits: dict[str, LabelledImages]
    num_classes: int = eqx.field(static=True)
    mean: float = eqx.field(static=True)
    std: float = eqx.field(static=True)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.splits["train"].images.shape[1:]


def image_dataset(splits: dict[str, tuple[np.ndarray, np.ndarray]], *, num_classes: int, name: str) -> ImageDataset:
    """An `ImageDataset` from NumPy arrays, checked.

    **Arguments:**

    - `splits`: `(images, labels)` by name; needs `"train"`. Images are `uint8` or floating point, `[n, ...]`.
    - `num_classes`: the number of classes.
    - `name`: what error messages call the data, for instance its folder.

    Raises `ValueError` where counts do not match, labels are not integers in range, a split is empty, a pixel is not
    finite, or all pixels are equal.
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
        if not np.isfinite(images).all():
            raise ValueError(f"{name}: split '{split}' holds pixels that are NaN or infinite.")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name}: split '{split}' has labels from {labels.min()} to {labels.max()}; expected 0 to "
                f"{num_classes - 1}."
            )
    train = splits["train"][0]
    if train.min() == train.max():
        raise ValueError(f"{name}: all training pixels are equal.")
    mean, std = float(train.mean(dtype=np.float64)), float(train.std(dtype=np.float64))
    return ImageDataset(
        {
            split: LabelledImages(jnp.asarray(_compact(images)), jnp.asarray(labels, jnp.int32))
            for split, (images, labels) in splits.items()
        },
        num_classes,
        mean,
        std,
    )


def digits() -> ImageDataset:
    """The 1,797 handwritten 8x8 digits that come with scikit-learn (extra `[data]`): 1,500 to train, 297 to test.

    No download. The order is scikit-learn's, shuffled once with a fixed seed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("The digits come with scikit-learn: `pip install lo-components[data]`.") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = pixels.reshape(-1, 8, 8).astype(np.uint8)[order], labels[order]
    splits = {"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])}
    return image_dataset(splits, num_classes=10, name="scikit-learn digits")


def fashion_mnist(folder: str | Path) -> ImageDataset:
    """Fashion-MNIST, or any data set in its layout (MNIST), from the four idx files in `folder`, gzipped or not.

    **Arguments:**

    - `folder`: holds `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]` and the two `t10k-` files.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where one is missing, truncated or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; expected one with Fashion-MNIST's four idx files.")
    splits = {
        split: (
            read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"), ndim=3),
            read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"), ndim=1),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    return image_dataset(splits, num_classes=10, name=str(folder))


def read_idx(path: str | Path, *, ndim: int) -> np.ndarray:
    """The `uint8` array of an idx file, gzipped or not, which must have `ndim` axes.

    Raises `ValueError`, naming the file, where it is not such a file, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(f"`{path}` is not a complete gzip file ({error}).") from None
    except Exception as error:  # zlib.error, whose module need not exist
        raise ValueError(f"`{path}` is not a valid gzip file ({error}).") from None
    header = 4 + 4 * ndim
    if len(data) < header or data[:2] != b"\0\0" or data[2] != 8 or data[3] != ndim:
        raise ValueError(f"`{path}` is not an idx file of unsigned bytes with {ndim} axes.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"`{path}` should hold {math.prod(shape)} values of shape {shape}, but holds {len(data) - header}."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"`{folder}` has neither `{name}.gz` nor `{name}`.")


def _compact(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else images.astype(np.float32)
