from typing import Any

import numpy as np
from jaxtyping import Float


def pooled(images: Any, size: int) -> Float[np.ndarray, "n size size *channels"]:
    """Square images averaged over blocks of pixels to `size` x `size`, in float32.

    If `size` does not divide theirs, they first get equal margins of zeros: 28x28 images become 32x32, and then 8x8.

    **Arguments:**

    - `images`: `[n, height, height]` or `[n, height, height, channels]`, of any dtype.
    - `size`: the number of pixels of a side.

    **Returns:** the means, which are not rounded.

    Raises `ValueError` if images are not square, or if `size` is not between 1 and theirs, or if equal margins do not
    make it divide theirs.
    """
    images = np.asarray(images, np.float32)
    if images.ndim not in (3, 4) or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"`images` must be square, `[n, height, height]` with or without channels, got {images.shape}."
        )
    height = images.shape[1]
    if not 1 <= size <= height:
        raise ValueError(f"`size` must be between 1 and {height}, the size of the images, got {size}.")
    margin, rest = divmod(-height % size, 2)
    if rest:
        raise ValueError(f"`size` {size} needs unequal margins for images of {height} pixels; choose another one.")
    sides = [(margin, margin) if axis in (1, 2) else (0, 0) for axis in range(images.ndim)]
    block = (height + 2 * margin) // size
    blocks = np.pad(images, sides).reshape(len(images), size, block, size, block, *images.shape[3:])
    return blocks.mean((2, 4))
