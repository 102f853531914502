import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._files import existing_folder, find_file, read_prefix, refuse_decompression_bomb
from ._images import ImageDataset, image_dataset


def fashion_mnist(folder: str | Path) -> ImageDataset:
    """Read Fashion-MNIST, or another data set in the same format such as MNIST.

    **Arguments:**

    - `folder`: contains `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k-` files, each with or
        without the suffix `.gz`.

    **Returns:** images `[28, 28]` in the splits `"train"` and `"test"`.

    Raises `FileNotFoundError` if a file is missing and `ValueError` if one is truncated or malformed; both name it.

    ??? cite "Source"
        Xiao, Rasul, Vollgraf, *Fashion-MNIST* (arXiv 1708.07747).
    """
    folder = existing_folder(folder, "Fashion-MNIST's four idx files")

    def read(prefix: str, kind: str, ndim: int) -> UInt8[np.ndarray, "..."]:
        name = f"{prefix}-{kind}-idx{ndim}-ubyte"
        return read_idx(find_file(folder, f"{name}.gz", name), ndim=ndim)

    prefixes = {"train": "train", "test": "t10k"}
    splits = {split: (read(prefix, "images", 3), read(prefix, "labels", 1)) for split, prefix in prefixes.items()}
    return image_dataset(splits, num_classes=10, name=str(folder))


def read_idx(path: str | Path, *, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read the array of unsigned bytes in an idx file, the format of MNIST.

    **Arguments:**

    - `path`: the file; decompressed if its name ends in `.gz`.
    - `ndim`: the number of axes that the array must have.

    **Returns:** the array, with the shape that the file's header gives.

    Raises `FileNotFoundError` if there is no such file, and `ValueError`, naming the file, if it is not an idx file of
    unsigned bytes with `ndim` axes, or is shorter or longer than its header says.
    """
    path = Path(path).expanduser()
    header_size = 4 + 4 * ndim
    data = read_prefix(path, header_size)
    if len(data) < header_size or data[:2] != b"\0\0" or data[2] != 8 or data[3] != ndim:
        raise ValueError(f"`{path}` is not an idx file of unsigned bytes with {ndim} axes.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    expected = math.prod(shape)
    refuse_decompression_bomb(path, expected)
    data = read_prefix(path, header_size + expected + 1)
    actual = len(data) - header_size
    if actual != expected:
        actual = "more" if actual > expected else actual
        raise ValueError(f"`{path}` should contain {expected} values of shape {shape}, but contains {actual}.")
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)
