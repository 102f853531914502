import importlib.util
from pathlib import Path

import numpy as np

from ._images import ImageDataset, image_dataset


def digits() -> ImageDataset:
    """The 1,797 handwritten 8x8 digits that are included in scikit-learn (extra `[data]`), so nothing is downloaded.

    **Returns:** images `[8, 8]` with values from 0 to 16, shuffled with a fixed seed: 1,500 in the split `"train"` and
    297 in `"test"`.

    Raises `ImportError` if scikit-learn is not installed.

    **Example:**

    ```pycon
    >>> digits = loc.data.digits()
    >>> digits.splits["train"].images.shape, digits.splits["test"].labels.shape
    ((1500, 8, 8), (297,))
    ```
    """
    # Only the file is needed: importing scikit-learn takes longer than everything else here.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError("`digits` needs scikit-learn: `pip install lo-components[data]`.")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = pixels.reshape(-1, 8, 8).astype(np.uint8)[order], labels[order]
    splits = {"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])}
    return image_dataset(splits, num_classes=10, name="scikit-learn digits")
