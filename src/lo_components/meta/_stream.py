"""Windows of a stream for the streamed tasks of an estimator or a task."""

from typing import Any, Generic, TypeVar

import jax
from jaxtyping import Array

from ..data import AbstractBatchIterator, prefetch_to_device, windows
from ..tasks import streamed_tasks, with_window

TreeT = TypeVar("TreeT")

_in_use: list[AbstractBatchIterator] = []


class Windows(Generic[TreeT]):
    """A tree with one window of a stream after the other put into its streamed tasks.

    A background thread prepares the next window. At the end of the `with` block it stops, and the stream is restored to
    the position that it had.
    """

    def __init__(self, stream: AbstractBatchIterator, tree: TreeT):
        sizes = {task.num_batches for task in streamed_tasks(tree)}
        if not sizes:
            raise ValueError(
                "`stream` needs a task that takes its batches from it: wrap the task, "
                "`lo_components.tasks.Streamed(task, num_batches)`."
            )
        if len(sizes) > 1:
            raise ValueError(f"`stream` needs tasks with one `num_batches`, got {sorted(sizes)}.")
        (self.num_batches,) = sizes
        self._tree, self._stream, self._start = tree, stream, stream.state()
        self._windows = prefetch_to_device(windows(stream, self.num_batches), 1)
        self._count, self._running = 0, ()

    def __enter__(self) -> "Windows[TreeT]":
        if any(stream is self._stream for stream in _in_use):
            raise ValueError("`stream` is in use by another call, for instance around a callback; make a second one.")
        _in_use.append(self._stream)
        return self

    def __exit__(self, *exception: Any) -> None:
        _in_use[:] = [stream for stream in _in_use if stream is not self._stream]
        self._windows.restore(self._start)
        self._windows.close()

    def next(self, running: Array | tuple[()] = ()) -> TreeT:
        """The tree with the next window, while the device computes `running`.

        Waits for the computation of the previous call, so that no more windows are on the device than the one in use,
        the next one and the one after it.
        """
        jax.block_until_ready(self._running)
        try:
            window = next(self._windows)
        except StopIteration:
            raise ValueError(
                f"`stream` ended within window {self._count + 1} of {self.num_batches} batches; pass a `pipeline` with "
                "`repeat=True`."
            ) from None
        self._count, self._running = self._count + 1, running
        self._tree = with_window(self._tree, window)
        return self._tree

    def identity(self) -> tuple[dict[str, int], Any]:
        """What tells this stream from others: its settings, and the first window, which must have been read."""
        return self._start, [task.batches for task in streamed_tasks(self._tree)][:1]

    def state(self) -> dict[str, int]:
        """The position after the last window."""
        return self._windows.state()

    def restore(self, state: dict[str, int]) -> None:
        """Continue after the window that `state()` followed."""
        try:
            self._windows.restore(state)
        except ValueError as error:
            raise ValueError(f"`stream` is not the one that this run began with: {error}") from None


def continued(source: Windows[TreeT] | None, saved: dict[str, int] | None, tree: TreeT) -> TreeT:
    """The tree for the next meta-step of a run of which a checkpoint has saved this position, or `None`."""
    if source is None and saved is None:
        return tree
    if source is None or saved is None:
        raise ValueError(
            f"`stream` must be passed exactly if the run began with one, and this one began "
            f"{'without' if saved is None else 'with'} one; call `meta_train` as before, or choose another folder."
        )
    source.restore(saved)
    return source.next()
