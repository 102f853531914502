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
    """Put batches on the device before they are asked for, so that transfers overlap with computations.

    **Arguments:**

    - `iterator`: from [`lo_components.data.pipeline`][].
    - `size`: how many batches may be on the device, or on their way, that were not returned yet.
    - `sharding`: where to put them; by default the default device.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    return _DevicePrefetch(iterator, size, sharding)


class _DevicePrefetch(AbstractBatchIterator):
    def __init__(self, iterator: AbstractBatchIterator, size: int, sharding: jax.sharding.Sharding | None):
        self._iterator, self._size, self._sharding = iterator, size, sharding
        self._waiting = collections.deque()
        self._state = iterator.state()

    def __next__(self) -> Any:
        while len(self._waiting) < self._size:
            try:
                batch = next(self._iterator)
            except StopIteration:
                break
            # The state travels with its batch: the iterator itself is ahead of what was returned.
            self._waiting.append((jax.device_put(batch, self._sharding), self._iterator.state()))
        if not self._waiting:
            raise StopIteration
        batch, self._state = self._waiting.popleft()
        return batch

    def state(self) -> dict[str, int]:
        return dict(self._state)

    def restore(self, state: dict[str, int]) -> None:
        self._iterator.restore(state)
        self._waiting.clear()
        self._state = self._iterator.state()

    def close(self) -> None:
        self._iterator.restore(self._state)
        self._waiting.clear()
        self._iterator.close()
