import collections
import concurrent.futures
import operator
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .._types import typechecked
from ._pipeline import AbstractBatchIterator


@typechecked
def prefetch_to_device(
    iterator: AbstractBatchIterator, size: int = 2, sharding: jax.sharding.Sharding | None = None
) -> AbstractBatchIterator[PyTree[Array]]:
    """Read batches and transfer them to the device in a background thread, while the device computes.

    Errors of the reader are raised by the call that would have returned the batch. `close()` ends the thread, after the
    batch that it is reading; so does the end of the program.

    **Arguments:**

    - `iterator`: batches from [`lo_components.data.pipeline`][], or windows of them from
        [`lo_components.data.windows`][]. It must not be used elsewhere until `close()`.
    - `size`: the number of batches to keep on the device ahead of the one in use.
    - `sharding`: where to put them; `None` is the default device.

    **Returns:** an iterator over the same batches as JAX arrays. Its `state()` counts the batches that it has returned,
        and `close()` puts `iterator` at that position.

    Raises `ValueError` if `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    return _DevicePrefetch(iterator, size, sharding)


class _DevicePrefetch(AbstractBatchIterator):
    def __init__(self, iterator: AbstractBatchIterator, size: int, sharding: jax.sharding.Sharding | None):
        self._iterator, self._size, self._sharding = iterator, size, sharding
        self._queue: collections.deque[concurrent.futures.Future] = collections.deque()
        self._state = iterator.state()
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        # The setting is one of the calling thread.
        self._device = operator.attrgetter("jax_default_device")(jax.config)

    def __next__(self) -> Any:
        try:
            self._fill()
            batch = self._queue.popleft()
            self._fill()
            result, self._state = batch.result()
        except BaseException:
            self._stop()
            raise
        return result

    def state(self) -> dict[str, int]:
        return dict(self._state)

    def restore(self, state: dict[str, int]) -> None:
        self._stop()
        self._iterator.restore(state)
        self._state = self._iterator.state()

    def close(self) -> None:
        self._stop()
        self._iterator.close()

    def _fill(self) -> None:
        if self._thread is None:
            # Python joins such threads when it exits, before JAX ends; others could still be in a transfer then.
            self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")
        while len(self._queue) < self._size:
            self._queue.append(self._thread.submit(self._read))

    def _read(self) -> tuple[Any, dict[str, int]]:
        """The next batch, and the position after it."""
        with jax.default_device(self._device):
            return jax.device_put(next(self._iterator), self._sharding), self._iterator.state()

    def _stop(self) -> None:
        """End the thread, and go back to the position after the last batch returned."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
            self._queue.clear()
            self._iterator.restore(self._state)
