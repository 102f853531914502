import numpy as np

from ._images import ImageDataset, image_dataset


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
