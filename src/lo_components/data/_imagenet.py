import math
import zipfile
from pathlib import Path

import numpy as np

from .._types import typechecked
from ._files import existing_folder, find, naming, refuse_absurd_size
from ._images import ImageDataset, image_dataset
from ._pickled import read_pickle
from ._planar import Batch, checked_batch, joined


@typechecked
def imagenet_downsampled(folder: str | Path, size: int = 32, *, num_batches: int = 10) -> ImageDataset:
    """Downsampled ImageNet: 1,281,167 training images of 1,000 classes, and the 50,000 for validation as `"test"`.

    Images are `[size, size, 3]`. At size 32 they take 4 GB, at size 64 16 GB. Where the accelerator has not that much,
    read them under `jax.default_device(jax.devices("cpu")[0])` and draw from them with
    [`lo_components.data.pipeline`][].

    **Arguments:**

    - `folder`: holds `train_data_batch_1` to `train_data_batch_10` and `val_data`, as published: pickled, or the same
        with `.npz`.
    - `size`: height and width, 32 or 64 (8 and 16 are published too).
    - `num_batches`: how many of the ten training batches to read.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where one is missing, truncated or malformed.

    ??? cite "Source"
        Chrabaszcz, Loshchilov, Hutter, *A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets*
        (arXiv 1707.08819).
    """
    folder = existing_folder(folder, "the batches of downsampled ImageNet")
    if not 1 <= num_batches <= 10:
        raise ValueError(f"`num_batches` must be from 1 to 10, got {num_batches}.")

    def read(name: str) -> Batch:
        path = find(folder, f"{name}.npz", name)
        data, labels = (_read_npz if path.suffix == ".npz" else read_pickle)(path, "data", "labels")
        return checked_batch(path, data, labels, size=size, first=1, last=1000)

    train = joined([read(f"train_data_batch_{i}") for i in range(1, num_batches + 1)])
    splits = {"train": train, "test": joined([read("val_data")])}
    return image_dataset(splits, num_classes=1000, name=str(folder))


def _read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays from an npz file, each of the size that the archive states, which the file's size bounds."""
    with naming(path, "an npz file of arrays"), zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        missing = [name for name in names if name not in members]
        if missing:
            raise ValueError(f"it has no `{missing[0]}`, only: {', '.join(members)[:200] or 'nothing'}")
        refuse_absurd_size(path, sum(members[name].file_size for name in names))
        return [_read_npy(archive, members[name]) for name in names]


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed in a way that NumPy does not use")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its arrays have the unknown format {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds an array of Python objects")
        held = member.file_size - file.tell()
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != held:
            raise ValueError(f"an array of shape {shape} does not fit its {held} bytes")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
