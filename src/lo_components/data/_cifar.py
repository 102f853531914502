from pathlib import Path

import numpy as np

from ._files import existing_folder, find
from ._images import ImageDataset, image_dataset
from ._pickled import read_pickle
from ._planar import Batch, checked_batch, joined


def cifar10(folder: str | Path) -> ImageDataset:
    """CIFAR-10 from its six published batches, in the layout for Python or in the binary one.

    Images are `[32, 32, 3]`. Batches may be shorter than the published 10,000. No pickled code is run.

    **Arguments:**

    - `folder`: holds `data_batch_1` to `data_batch_5` and `test_batch`, or the same with `.bin`, or has the archive's
        folder, `cifar-10-batches-py` or `cifar-10-batches-bin`, in it.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where one is missing, truncated or malformed.

    ??? cite "Source"
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _read(folder, "CIFAR-10", "cifar-10-batches", names, key="labels", label_bytes=1, num_classes=10)


def cifar100(folder: str | Path) -> ImageDataset:
    """CIFAR-100 with its 100 fine classes, in the layout for Python or in the binary one.

    Images are `[32, 32, 3]`. No pickled code is run.

    **Arguments:**

    - `folder`: holds `train` and `test`, or `train.bin` and `test.bin`, or has the archive's folder,
        `cifar-100-python` or `cifar-100-binary`, in it.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where one is missing, truncated or malformed.

    ??? cite "Source"
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    names = {"train": ["train"], "test": ["test"]}
    return _read(folder, "CIFAR-100", "cifar-100", names, key="fine_labels", label_bytes=2, num_classes=100)


def _read(
    folder: str | Path,
    title: str,
    archive: str,
    files: dict[str, list[str]],
    *,
    key: str,
    label_bytes: int,
    num_classes: int,
) -> ImageDataset:
    folder = existing_folder(folder, f"the batches of {title}")
    inside = [folder / f"{archive}{ending}" for ending in ("-py", "-python", "-bin", "-binary")]
    folder = next(filter(Path.is_dir, inside), folder)

    def read(name: str) -> Batch:
        path = find(folder, name, f"{name}.bin")
        data, labels = _read_records(path, label_bytes) if path.suffix == ".bin" else read_pickle(path, "data", key)
        return checked_batch(path, data, labels, size=32, first=0, last=num_classes - 1)

    splits = {split: joined([read(name) for name in names]) for split, names in files.items()}
    return image_dataset(splits, num_classes=num_classes, name=str(folder))


def _read_records(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a binary batch, and the last of the labels before each: of CIFAR-100's two the fine one."""
    data, size = np.fromfile(path, np.uint8), label_bytes + 3 * 32 * 32
    if not len(data) or len(data) % size:
        raise ValueError(f"`{path}` has {len(data)} bytes, which are not whole records of {size}.")
    data = data.reshape(-1, size)
    return data[:, label_bytes:], data[:, label_bytes - 1]
