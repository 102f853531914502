import abc
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from .._types import typechecked
from ._images import ImageDataset, normalize
from ._sampler import one_split
from ._tokens import TokenDataset

BatchT = TypeVar("BatchT", covariant=True)


class AbstractBatchIterator(abc.ABC, Generic[BatchT]):
    """An iterator over batches whose position can be saved and restored."""

    def __iter__(self) -> Iterator[BatchT]:
        return self

    @abc.abstractmethod
    def __next__(self) -> BatchT:
        """The next batch."""

    @abc.abstractmethod
    def state(self) -> dict[str, int]:
        """The position after the last batch returned.

        **Returns:** a dictionary that can be stored as JSON.
        """

    @abc.abstractmethod
    def restore(self, state: dict[str, int]) -> None:
        """Continue from a saved position with exactly the batches that followed it.

        **Arguments:**

        - `state`: from `state()`.

        Raises `ValueError` if `state` is from a pipeline with other batches.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop threads and worker processes; `contextlib.closing` calls this."""


@runtime_checkable
class RandomAccess(Protocol):
    """A source with a length and examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@typechecked
def pipeline(
    source: ImageDataset | TokenDataset | RandomAccess,
    batch_size: int,
    *,
    seed: int,
    split: str | None = None,
    shuffle: bool = True,
    repeat: bool = True,
    num_workers: int = 0,
    read_ahead: int = 2,
) -> AbstractBatchIterator[PyTree[np.ndarray]]:
    """Stream batches that Grain prepares on the host, in a thread or in worker processes, while the device computes.

    For data that does not fit on the device or is decoded on the fly; otherwise prefer
    [`lo_components.data.sample_batch`][]. Each example appears once per epoch, in an order that depends only on `seed`
    and the epoch, so batches do not depend on the number of workers. Needs Grain (extra `[data]`).

    **Arguments:**

    - `source`: an `ImageDataset` (batches are normalized images and labels), a `TokenDataset` (sequences), or anything
        with a length and examples by index, each an array or a tree of arrays (stacked examples).
    - `batch_size`: the number of examples per batch.
    - `seed`: the seed of the order.
    - `split`: the split of a data set; `None` is `"train"`. Other sources have no splits.
    - `shuffle`: whether to reshuffle the examples in each epoch.
    - `repeat`: whether to continue with the next epoch, possibly within a batch. If false, the iterator ends after one
        epoch, and its last batch may be smaller.
    - `num_workers`: the number of worker processes. They are spawned, so scripts need `if __name__ == "__main__":`, and
        each has a copy of the source. With 0, a thread of this process prepares the batches.
    - `read_ahead`: the number of batches that the thread, or each worker, prepares ahead of time.

    **Returns:** an iterator over batches of NumPy arrays.

    Raises `ImportError` if Grain is not installed, `TypeError` if the source is a tuple or dictionary of arrays, and
    `ValueError` if an argument is out of range, there is no such split or the source is empty.
    """
    if isinstance(source, tuple | dict):
        raise TypeError(
            f"`source` must be a data set, an array or a sequence of examples, got a {type(source).__name__}."
        )
    count, take = _examples(source, split)
    if not count:
        raise ValueError("`source` is empty.")
    limits = {"batch_size": (batch_size, 1), "seed": (seed, 0), "num_workers": (num_workers, 0)}
    for name, (value, minimum) in {**limits, "read_ahead": (read_ahead, 1)}.items():
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
    return _Pipeline(_Batches(take, count, batch_size, seed, shuffle, repeat), num_workers, read_ahead)


Take = Callable[[np.ndarray], Any]


def _examples(source: Any, split: str | None) -> tuple[int, Take]:
    """The number of examples, and a function that takes several by index and can be sent to worker processes."""
    if isinstance(source, ImageDataset):
        examples = one_split(source.splits, split or "train")
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        statistics = np.asarray(source.mean), np.asarray(source.std)
        return len(labels), functools.partial(_take_images, images, labels, *statistics)
    if isinstance(source, TokenDataset):
        source = one_split(source.splits, split or "train")
    elif split is not None:
        raise ValueError(f"`split` is for data sets; a source of type {type(source).__name__} has none.")
    if isinstance(source, jax.Array | np.ndarray):
        return len(source), functools.partial(_take_rows, np.asarray(source))
    return len(source), functools.partial(_take_each, source)


def _take_images(images: np.ndarray, labels: np.ndarray, mean, std, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return normalize(images[index], mean, std), labels[index]


def _take_rows(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    return array[index]


def _take_each(source: RandomAccess, index: np.ndarray) -> PyTree[np.ndarray]:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[source[i] for i in index.tolist()])


@dataclasses.dataclass(eq=False, repr=False)
class _Batches:
    """Batches by index, for Grain to fetch.

    Grain's own shuffling and batching handle one example at a time and take 7 to 20 times as long for in-memory arrays
    (`benchmarks/input.py`).
    """

    take: Take
    count: int
    batch_size: int
    seed: int
    shuffle: bool
    repeat: bool
    _last_order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    @property
    def settings(self) -> dict[str, int]:
        """Everything that the batches depend on besides the examples."""
        names = ("batch_size", "seed", "shuffle", "repeat")
        return {"examples": self.count, **{name: int(getattr(self, name)) for name in names}}

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size if self.repeat else -(-self.count // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        start = index * self.batch_size
        stop = start + self.batch_size if self.repeat else min(start + self.batch_size, self.count)
        epochs, examples = np.divmod(np.arange(start, stop), self.count)
        if self.shuffle:
            parts = [self._order(epoch)[examples[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
            examples = np.concatenate(parts)
        return self.take(examples)

    def _order(self, epoch: int) -> np.ndarray:
        if self._last_order[0] != epoch:
            self._last_order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return self._last_order[1]


class _Pipeline(AbstractBatchIterator):
    def __init__(self, batches: _Batches, num_workers: int, read_ahead: int):
        try:
            import grain
        except ImportError:
            raise ImportError("`pipeline` needs Grain: `pip install lo-components[data]`.") from None
        self._grain = grain
        self._batches, self._num_workers, self._read_ahead = batches, num_workers, read_ahead
        self._position = 0
        self._iterator: Any = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._position += 1
        # Workers return views of shared memory that is freed soon.
        return jax.tree.map(np.array, batch) if self._num_workers else batch

    def state(self) -> dict[str, int]:
        # A batch depends only on its index, so the index is all there is to save, also with several workers.
        return {"batches": self._position, **self._batches.settings}

    def restore(self, state: dict[str, int]) -> None:
        settings = {name: value for name, value in state.items() if name != "batches"}
        if settings != self._batches.settings:
            raise ValueError(f"`state` is from another pipeline: {settings}, not {self._batches.settings}.")
        if not 0 <= state.get("batches", -1) <= len(self._batches):
            raise ValueError(f"`state` has no valid number of batches: {state}.")
        self.close()
        self._position = state["batches"]

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Iterator[Any]:
        grain, batches = self._grain, self._grain.MapDataset.source(self._batches)[self._position :]
        if not self._num_workers:
            return iter(
                batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._read_ahead))
            )
        _mark_flags_as_parsed()
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        workers = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=self._read_ahead)
        return iter(batches.mp_prefetch(workers))


def _mark_flags_as_parsed() -> None:
    # Grain 0.2.18 reads a command-line flag that only `absl.app` parses (google/grain issue 1355).
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
