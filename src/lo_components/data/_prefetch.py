import collections
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .._types import typechecked
from ._pipeline import AbstractBatchIterator


@typechecked
def prefetch_to_device(
    iterator: AbstractBatchIterator, size: int = 2, sharding: jax.sharding.Sharding | None = None
) -> AbstractBatchIterator[PyTree[Array]]:
    """Transfer batches to the device ahead of time, so that transfers overlap with computation.

    **Arguments:**

    - `iterator`: batches, for instance from [`lo_components.data.pipeline`][].
    - `size`: the number of batches to keep on the device or in transfer.
    - `sharding`: where to put them; `None` is the default device.

    **Returns:** an iterator over the same batches as JAX arrays. Its `state()` counts the batches that it has returned.

    Raises `ValueError` if `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    return _DevicePrefetch(iterator, size, sharding)


class _DevicePrefetch(AbstractBatchIterator):
    def __init__(self, iterator: AbstractBatchIterator, size: int, sharding: jax.sharding.Sharding | None):
        self._iterator, self._size, self._sharding = iterator, size, sharding
        self._queue = collections.deque()
        self._state = iterator.state()

    def __next__(self) -> Any:
        while len(self._queue) < self._size:
            try:
                batch = next(self._iterator)
            except StopIteration:
                break
            # Each batch keeps the state after it, since `self._iterator` is ahead of the batches returned.
            self._queue.append((jax.device_put(batch, self._sharding), self._iterator.state()))
        if not self._queue:
            raise StopIteration
        batch, self._state = self._queue.popleft()
        return batch

    def state(self) -> dict[str, int]:
        return dict(self._state)

    def restore(self, state: dict[str, int]) -> None:
        self._iterator.restore(state)
        self._queue.clear()
        self._state = self._iterator.state()

    def close(self) -> None:
        self._iterator.restore(self._state)
        self._queue.clear()
        self._iterator.close()
