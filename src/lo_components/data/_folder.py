import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .._types import typechecked
from ._files import existing_folder, parsing
from ._images import ImageDataset, image_dataset

# Formats that Pillow decodes itself; for some others it starts other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = frozenset(".bmp .gif .jpg .jpeg .png .ppm .pgm .tif .tiff .webp".split())


@typechecked
def image_folder(folder: str | Path, size: int = 32) -> ImageDataset:
    """Read images from one subfolder per class and resize them to `[size, size, 3]`.

    Each pixel of the result is the average over the box it covers, as in downsampled ImageNet; the aspect ratio is not
    preserved. Classes are numbered in alphabetical order of their folders. Needs Pillow (extra `[data]`).

    **Arguments:**

    - `folder`: contains either the class folders, all of whose images become the split `"train"`, or one folder per
        split, `train` among them, each with class folders.
    - `size`: height and width.

    **Returns:** images `[size, size, 3]`, with one class per folder.

    Raises `FileNotFoundError` if the folder is missing, `ImportError` if Pillow is not installed, and `ValueError`,
    naming the file or folder, if there are no images, an image cannot be read, a split has a class that `train` does
    not have, or `size` is below 1.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("`image_folder` needs Pillow: `pip install lo-components[data]`.") from None
    folder = existing_folder(folder, "one subfolder of images per class")
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    train = folder / "train"
    # A folder `train` without subfolders is a class, perhaps pictures of trains.
    split_folders = {path.name: path for path in _subfolders(folder)} if _has_subfolders(train) else {"train": folder}
    classes = [path.name for path in _subfolders(split_folders["train"])]
    if not classes:
        raise ValueError(f"`{split_folders['train']}` has no subfolders; expected one per class.")
    splits = {}
    for split, split_folder in split_folders.items():
        files, labels = _list_images(split_folder, classes)
        images = np.empty((len(files), size, size, 3), np.uint8)
        for image, path in zip(images, files, strict=True):
            image[:] = _read(Image, path, size)
        splits[split] = (images, np.array(labels))
    return image_dataset(splits, num_classes=len(classes), name=str(folder))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_subfolders(folder: Path) -> bool:
    return folder.is_dir() and bool(_subfolders(folder))


def _list_images(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for subfolder in _subfolders(folder):
        if subfolder.name not in classes:
            raise ValueError(f"`{subfolder}` is a class that the training images do not have.")
        paths = sorted(p for p in subfolder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
        if not paths:
            raise ValueError(f"`{subfolder}` has no images ({', '.join(sorted(_SUFFIXES))}).")
        files += paths
        labels += [classes.index(subfolder.name)] * len(paths)
    if not files:
        raise ValueError(f"`{folder}` has no subfolders; expected one per class.")
    return files, labels


def _read(Image, path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    with parsing(path, "a complete image"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise ValueError(f"its pixels have mode {image.mode}; convert it to 8 bits per channel")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
