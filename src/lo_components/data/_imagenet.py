import math
import zipfile
from pathlib import Path

import numpy as np

from .._types import typechecked
from ._files import existing_folder, find_file, parsing, refuse_decompression_bomb
from ._images import ImageDataset, image_dataset
from ._pickled import read_pickle
from ._planar import Batch, checked_batch, concatenate


@typechecked
def imagenet_downsampled(folder: str | Path, size: int = 32, *, num_batches: int = 10) -> ImageDataset:
    """Read downsampled ImageNet: 1,281,167 training and 50,000 validation images of 1,000 classes.

    The images take 4 GB at size 32 and 16 GB at size 64. If they do not fit on the accelerator, read them under
    `jax.default_device(jax.devices("cpu")[0])` and stream batches with [`lo_components.data.pipeline`][].

    **Arguments:**

    - `folder`: contains `train_data_batch_1` to `train_data_batch_10` and `val_data`, pickled as published or with the
        suffix `.npz`.
    - `size`: height and width of the images in the files: 8, 16, 32 or 64.
    - `num_batches`: how many of the ten training batches to read.

    **Returns:** images `[size, size, 3]` in the splits `"train"` and `"test"`, which holds the validation images.

    Raises `FileNotFoundError` if a file is missing, and `ValueError` if one is truncated or malformed or `num_batches`
    is not from 1 to 10.

    ??? cite "Source"
        Chrabaszcz, Loshchilov, Hutter, *A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets*
        (arXiv 1707.08819).
    """
    folder = existing_folder(folder, "the batches of downsampled ImageNet")
    if not 1 <= num_batches <= 10:
        raise ValueError(f"`num_batches` must be from 1 to 10, got {num_batches}.")

    def read(name: str) -> Batch:
        path = find_file(folder, f"{name}.npz", name)
        data, labels = (_read_npz if path.suffix == ".npz" else read_pickle)(path, "data", "labels")
        return checked_batch(path, data, labels, size=size, first=1, last=1000)

    train = concatenate([read(f"train_data_batch_{i}") for i in range(1, num_batches + 1)])
    return image_dataset({"train": train, "test": read("val_data")}, num_classes=1000, name=str(folder))


def _read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays from an npz file.

    `np.load` would decompress an archive of any size and ignore bytes beyond an array's shape; here both are errors.
    """
    with parsing(path, "an npz file of arrays"), zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        missing = [name for name in names if name not in members]
        if missing:
            raise ValueError(f"it has no `{missing[0]}`, only: {', '.join(members)[:200] or 'nothing'}")
        refuse_decompression_bomb(path, sum(members[name].file_size for name in names))
        return [_read_npy(archive, members[name]) for name in names]


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression is not one that NumPy uses")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its arrays have the unknown format {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it contains an array of Python objects")
        size = member.file_size - file.tell()
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"an array of shape {shape} does not fit its {size} bytes")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")
