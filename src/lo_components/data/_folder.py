import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .._types import typechecked
from ._files import existing_folder, naming
from ._images import ImageDataset, image_dataset

# Formats that Pillow decodes itself; for some others it starts programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = frozenset(".bmp .gif .jpg .jpeg .png .ppm .pgm .tif .tiff .webp".split())


@typechecked
def image_folder(folder: str | Path, size: int = 32) -> ImageDataset:
    """Images in one subfolder per class, resized to `[size, size, 3]`.

    Each output pixel is the mean of the box that it covers, as in downsampled ImageNet; the aspect ratio is not kept.
    Classes are numbered in the order of their folders' names. Needs Pillow (extra `[data]`).

    **Arguments:**

    - `folder`: holds the folders of the classes, and all images are in the split `"train"`; or holds `train` and others
        like it, each a split with folders of classes in it.
    - `size`: height and width.

    Raises `FileNotFoundError` or `ValueError`, naming the file or folder, where there are no images, an image cannot be
    read, or a split has a class that `train` has not.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("Reading images takes Pillow: `pip install lo-components[data]`.") from None
    folder = existing_folder(folder, "one subfolder of images per class")
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    train = folder / "train"
    # A folder `train` without folders in it is a class, of pictures of trains perhaps.
    split_folders = {path.name: path for path in _subfolders(folder)} if _has_subfolders(train) else {"train": folder}
    classes = [path.name for path in _subfolders(split_folders["train"])]
    if not classes:
        raise ValueError(f"`{split_folders['train']}` has no subfolders, one for each class.")
    splits = {}
    for split, place in split_folders.items():
        files, labels = _list(place, classes)
        images = np.empty((len(files), size, size, 3), np.uint8)
        for image, path in zip(images, files, strict=True):
            image[:] = _read(Image, path, size)
        splits[split] = (images, np.array(labels))
    return image_dataset(splits, num_classes=len(classes), name=str(folder))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_subfolders(folder: Path) -> bool:
    return folder.is_dir() and bool(_subfolders(folder))


def _list(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for place in _subfolders(folder):
        if place.name not in classes:
            raise ValueError(f"`{place}` is a class that the training images do not have.")
        found = sorted(p for p in place.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
        if not found:
            raise ValueError(f"`{place}` has no images ({', '.join(sorted(_SUFFIXES))}).")
        files += found
        labels += [classes.index(place.name)] * len(found)
    if not files:
        raise ValueError(f"`{folder}` has no subfolders, one for each class.")
    return files, labels


def _read(Image, path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    with naming(path, "a complete image"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise ValueError(f"it has pixels of mode {image.mode}; convert it to 8 bits for each channel")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
