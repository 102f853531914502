import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._sources import ImageDataset


def sample_batch(
    dataset: ImageDataset, batch_size: int, *, split: str = "train", key: PRNGKeyArray
) -> tuple[Float[Array, "batch ..."], Int[Array, " batch"]]:
    """A batch drawn uniformly with replacement, on the device, normalized after the gather.

    **Arguments:**

    - `dataset`: the data set.
    - `batch_size`: the number of examples.
    - `split`: which split to draw from.
    - `key`: for the draw.
    """
    if split not in dataset.splits:
        raise ValueError(f"`split` must be one of {sorted(dataset.splits)}, got {split!r}.")
    examples = dataset.splits[split]
    # The remainder's bias, at most the set's size over 2**32, is far below what a batch could show.
    index = jax.random.bits(key, (batch_size,), "uint32") % np.uint32(examples.labels.shape[0])
    images = (examples.images[index].astype(jnp.float32) - dataset.mean) * (1.0 / dataset.std)
    return images, examples.labels[index]
