import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._files import existing_folder, find_file, parsing, refuse_decompression_bomb
from ._images import ImageDataset, image_dataset
from ._pickled import read_pickle
from ._planar import Batch, checked_batch, concatenate

_FOLDERS = ("batches-py", "batches-bin", "python", "binary")


def cifar10(folder: str | Path) -> ImageDataset:
    """Read CIFAR-10 from its Python (pickled) or binary version; no pickled code is run.

    **Arguments:**

    - `folder`: contains `data_batch_1` to `data_batch_5` and `test_batch`, the same files with the suffix `.bin`, or
        the archive's folder `cifar-10-batches-py` or `cifar-10-batches-bin`, or an archive `cifar-10-*.tar.*` of one of
        these. Batches may have fewer than 10,000 images.

    **Returns:** images `[32, 32, 3]` in the splits `"train"` and `"test"`.

    Raises `FileNotFoundError` if a file is missing and `ValueError` if one is truncated or malformed; both name it.

    ??? cite "Source"
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _read(folder, "CIFAR-10", "cifar-10", names, key="labels", label_bytes=1, num_classes=10)


def cifar100(folder: str | Path) -> ImageDataset:
    """Read CIFAR-100 with its 100 fine classes from its Python (pickled) or binary version; no pickled code is run.

    **Arguments:**

    - `folder`: contains `train` and `test`, the same files with the suffix `.bin`, or the archive's folder
        `cifar-100-python` or `cifar-100-binary`, or an archive `cifar-100-*.tar.*` of one of these.

    **Returns:** images `[32, 32, 3]` in the splits `"train"` and `"test"`.

    Raises `FileNotFoundError` if a file is missing and `ValueError` if one is truncated or malformed; both name it.

    ??? cite "Source"
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    names = {"train": ["train"], "test": ["test"]}
    return _read(folder, "CIFAR-100", "cifar-100", names, key="fine_labels", label_bytes=2, num_classes=100)


def _read(
    folder: str | Path,
    title: str,
    prefix: str,
    files: dict[str, list[str]],
    *,
    key: str,
    label_bytes: int,
    num_classes: int,
) -> ImageDataset:
    folder = existing_folder(folder, f"the batches of {title}")
    places = [*(folder / f"{prefix}-{suffix}" for suffix in _FOLDERS), folder]
    archives = sorted(folder.glob(f"{prefix}-*.tar.*"))
    if archives and not any((x / f"{files['test'][0]}{suffix}").exists() for x in places for suffix in ("", ".bin")):
        with _unpacked(archives[0]) as temporary:
            return _read(temporary, title, prefix, files, key=key, label_bytes=label_bytes, num_classes=num_classes)
    folder = next(filter(Path.is_dir, places))

    def read(name: str) -> Batch:
        path = find_file(folder, name, f"{name}.bin")
        data, labels = _read_records(path, label_bytes) if path.suffix == ".bin" else read_pickle(path, "data", key)
        return checked_batch(path, data, labels, size=32, first=0, last=num_classes - 1)

    splits = {split: concatenate([read(name) for name in names]) for split, names in files.items()}
    return image_dataset(splits, num_classes=num_classes, name=str(folder))


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with what an archive contains."""
    with tempfile.TemporaryDirectory() as folder:
        with parsing(path, "a complete tar archive"), tarfile.open(path) as archive:
            size = sum(member.size for member in archive)
        refuse_decompression_bomb(path, size)
        with parsing(path, "a complete tar archive"), tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


def _read_records(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a binary batch and the last label byte of each record, which in CIFAR-100 is the fine class."""
    data, size = np.fromfile(path, np.uint8), label_bytes + 3 * 32 * 32
    if not len(data) or len(data) % size:
        raise ValueError(f"`{path}` has {len(data)} bytes, which is not a multiple of the record size {size}.")
    data = data.reshape(-1, size)
    return data[:, label_bytes:], data[:, label_bytes - 1]
