import abc
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
    """Batches, one after the other, from a position that can be saved and restored."""

    def __iter__(self) -> Iterator[BatchT]:
        return self

    @abc.abstractmethod
    def __next__(self) -> BatchT:
        """The next batch."""

    @abc.abstractmethod
    def state(self) -> dict[str, int]:
        """The position behind the batch that was returned last. It fits into JSON."""

    @abc.abstractmethod
    def restore(self, state: dict[str, int]) -> None:
        """Go to a position: what follows is exactly what followed when it was saved.

        Raises `ValueError` if it was saved by a pipeline that gives other batches.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End threads and worker processes. Use `contextlib.closing` to have it called."""


@runtime_checkable
class RandomAccess(Protocol):
    """A length and examples by number."""

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
    """Batches of NumPy arrays, prepared by Grain in a thread or in worker processes while the device computes.

    For data that does not fit on the device, or is decoded when it is read; what fits is better drawn there, by
    [`lo_components.data.sample_batch`][]. Each example comes once per epoch, in an order that depends on `seed` and the
    epoch alone, so the batches are the same with any number of workers. Needs Grain (extra `[data]`).

    **Arguments:**

    - `source`: an `ImageDataset` gives normalized images and labels, a `TokenDataset` sequences. Anything else with a
        length and examples by number, each an array or a tree of arrays, gives stacked examples.
    - `batch_size`: examples in a batch.
    - `seed`: for the order.
    - `split`: of a data set, by default `"train"`. Other sources have none.
    - `shuffle`: a new order in each epoch, or always the source's own.
    - `repeat`: go on with the next epoch, in the middle of a batch if need be; or stop after one epoch, whose last
        batch holds what is left.
    - `num_workers`: processes that prepare batches. They are spawned, so a script needs
        `if __name__ == "__main__":`, and each gets a copy of the source. 0 is one thread of this process.
    - `read_ahead`: how many batches the thread, or each worker, prepares in advance.

    Raises `ValueError` where an argument is out of range or the source is empty.
    """
    if isinstance(source, tuple | dict):
        raise TypeError(
            f"`source` must be a data set, an array or a sequence of examples, got a {type(source).__name__}."
        )
    count, take = _examples(source, split)
    if not count:
        raise ValueError("`source` is empty.")
    limits = {"batch_size": (batch_size, 1), "seed": (seed, 0), "num_workers": (num_workers, 0)}
    for name, (value, least) in {**limits, "read_ahead": (read_ahead, 1)}.items():
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    return _Pipeline(_Batches(take, count, batch_size, seed, shuffle, repeat), num_workers, read_ahead)


Take = Callable[[np.ndarray], Any]


def _examples(source: Any, split: str | None) -> tuple[int, Take]:
    """How many examples there are, and how to get several by number. Partial applications can be sent to workers."""
    if isinstance(source, ImageDataset):
        examples = one_split(source.splits, split or "train")
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        return len(labels), functools.partial(_take_images, images, labels, source.mean, source.std)
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


class _Batches:
    """Batches by number, for Grain to fetch.

    Grain could shuffle and batch too, but handles examples one by one, and then takes longer for each example than this
    takes for a batch.
    """

    def __init__(self, take: Take, count: int, batch_size: int, seed: int, shuffle: bool, repeat: bool):
        self.settings = {
            "examples": count,
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": int(shuffle),
            "repeat": int(repeat),
        }
        self._take, self._count, self._batch_size, self._seed = take, count, batch_size, seed
        self._shuffle, self._repeat = shuffle, repeat
        self._last_order = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size if self._repeat else -(-self._count // self._batch_size)

    def __getitem__(self, number: int) -> Any:
        start = number * self._batch_size
        stop = start + self._batch_size if self._repeat else min(start + self._batch_size, self._count)
        epochs, index = np.divmod(np.arange(start, stop), self._count)
        if self._shuffle:
            parts = [self._order(epoch)[index[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
            index = np.concatenate(parts)
        return self._take(index)

    def _order(self, epoch: int) -> np.ndarray:
        if self._last_order[0] != epoch:
            self._last_order = epoch, np.random.default_rng((self._seed, epoch)).permutation(self._count)
        return self._last_order[1]


class _Pipeline(AbstractBatchIterator):
    def __init__(self, batches: _Batches, num_workers: int, read_ahead: int):
        try:
            import grain
        except ImportError:
            raise ImportError("Pipelines take Grain: `pip install lo-components[data]`.") from None
        self._grain = grain
        self._batches, self._num_workers, self._read_ahead = batches, num_workers, read_ahead
        self._position = 0
        self._iterator: Any = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._position += 1
        # Workers hand over views of memory that they share, which is to be freed soon.
        return jax.tree.map(np.array, batch) if self._num_workers else batch

    def state(self) -> dict[str, int]:
        # Batches are a function of their number, so that is all there is to save, also with several workers.
        return {"batches": self._position, **self._batches.settings}

    def restore(self, state: dict[str, int]) -> None:
        others = {name: value for name, value in state.items() if name != "batches"}
        if others != self._batches.settings:
            raise ValueError(f"The state is of another pipeline: {others}, not {self._batches.settings}.")
        if not 0 <= state.get("batches", -1) <= len(self._batches):
            raise ValueError(f"The state has no valid number of batches: {state}.")
        self.close()
        self._position = state["batches"]

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Iterator[Any]:
        grain, in_workers = self._grain, self._num_workers > 0
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._read_ahead)
        if in_workers:
            reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        dataset = grain.MapDataset.source(self._batches)[self._position :].to_iter_dataset(reading)
        if in_workers:
            _let_grain_read_its_flags()
            options = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=self._read_ahead)
            dataset = dataset.mp_prefetch(options)
        return iter(dataset)


def _let_grain_read_its_flags() -> None:
    # Grain 0.2.18 reads a command-line flag that only `absl.app` parses (google/grain issue 1355).
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
