import itertools
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .. import _tree
from .._types import typechecked
from ._pipeline import AbstractBatchIterator


@typechecked
def windows(iterator: AbstractBatchIterator, num_batches: int) -> AbstractBatchIterator[PyTree[np.ndarray]]:
    """Windows of consecutive batches, stacked on a new leading axis.

    For [`lo_components.tasks.Streamed`][], which trains on one window at a time. To read, stack and transfer windows
    while the device computes, wrap them in [`lo_components.data.prefetch_to_device`][].

    **Arguments:**

    - `iterator`: batches of equal shapes, for instance from [`lo_components.data.pipeline`][].
    - `num_batches`: the number of batches per window.

    **Returns:** an iterator over windows. Its `state()` is that of `iterator` after the last window. It ends if fewer
        than `num_batches` batches are left.

    Raises `ValueError` if `num_batches` is below 1; iterating raises it if the batches of a window have different
    shapes.
    """
    if num_batches < 1:
        raise ValueError(f"`num_batches` must be at least 1, got {num_batches}.")
    return _Windows(iterator, num_batches)


class _Windows(AbstractBatchIterator):
    def __init__(self, iterator: AbstractBatchIterator, num_batches: int):
        self._iterator, self._num_batches = iterator, num_batches
        self._state = iterator.state()

    def __next__(self) -> Any:
        try:
            batches = list(itertools.islice(self._iterator, self._num_batches))
            if len(batches) < self._num_batches:
                raise StopIteration
            for batch in batches:
                if words := _tree.difference(batch, batches[0]):
                    raise ValueError(
                        f"`iterator` must have batches of equal shapes, so that they can be stacked: in one, {words}; "
                        "use `repeat=True`, or a batch size that divides the number of examples."
                    )
        except BaseException:
            self._iterator.restore(self._state)
            raise
        self._state = self._iterator.state()
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def state(self) -> dict[str, int]:
        return dict(self._state)

    def restore(self, state: dict[str, int]) -> None:
        self._iterator.restore(state)
        self._state = self._iterator.state()

    def close(self) -> None:
        self._iterator.restore(self._state)
        self._iterator.close()
