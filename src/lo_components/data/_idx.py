import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._files import existing_folder, find, read_start, refuse_absurd_size
from ._images import ImageDataset, image_dataset


def fashion_mnist(folder: str | Path) -> ImageDataset:
    """Fashion-MNIST, or any data set in its layout (MNIST), from the four idx files in `folder`, gzipped or not.

    **Arguments:**

    - `folder`: holds `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]` and the two `t10k-` files.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where one is missing, truncated or malformed.

    ??? cite "Source"
        Xiao, Rasul, Vollgraf, *Fashion-MNIST* (arXiv 1708.07747).
    """
    folder = existing_folder(folder, "Fashion-MNIST's four idx files")

    def read(prefix: str, kind: str, ndim: int) -> UInt8[np.ndarray, "..."]:
        name = f"{prefix}-{kind}-idx{ndim}-ubyte"
        return read_idx(find(folder, f"{name}.gz", name), ndim=ndim)

    prefixes = {"train": "train", "test": "t10k"}
    splits = {split: (read(prefix, "images", 3), read(prefix, "labels", 1)) for split, prefix in prefixes.items()}
    return image_dataset(splits, num_classes=10, name=str(folder))


def read_idx(path: str | Path, *, ndim: int) -> UInt8[np.ndarray, "..."]:
    """The `uint8` array of an idx file, gzipped or not, which must have `ndim` axes.

    Raises `ValueError`, naming the file, where it is not such a file, or shorter or longer than its header says.
    """
    path = Path(path)
    header = 4 + 4 * ndim
    data = read_start(path, header)
    if len(data) < header or data[:2] != b"\0\0" or data[2] != 8 or data[3] != ndim:
        raise ValueError(f"`{path}` is not an idx file of unsigned bytes with {ndim} axes.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    expected = math.prod(shape)
    refuse_absurd_size(path, expected)
    data = read_start(path, header + expected + 1)
    if len(data) - header != expected:
        held = "more" if len(data) - header > expected else len(data) - header
        raise ValueError(f"`{path}` should hold {expected} values of shape {shape}, but holds {held}.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
