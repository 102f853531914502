import numpy as np

from ._images import ImageDataset, image_dataset


def digits() -> ImageDataset:
    """The 1,797 handwritten 8x8 digits that are included in scikit-learn (extra `[data]`), so nothing is downloaded.

    **Returns:** images `[8, 8]` with values from 0 to 16, shuffled with a fixed seed: 1,500 in the split `"train"` and
    297 in `"test"`.

    Raises `ImportError` if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("`digits` needs scikit-learn: `pip install lo-components[data]`.") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = pixels.reshape(-1, 8, 8).astype(np.uint8)[order], labels[order]
    splits = {"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])}
    return image_dataset(splits, num_classes=10, name="scikit-learn digits")
