"""Helpers for meta-training in one or several processes."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

ResultT = TypeVar("ResultT")
TreeT = TypeVar("TreeT")


def is_first() -> bool:
    """Whether this process writes the files and shows the progress bar."""
    return jax.process_index() == 0


def from_first(number: int) -> int:
    """The number that the first process passed."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def by_first(make: Callable[[], ResultT]) -> ResultT | None:
    """The result of `make` in the first process, and `None` in the others. If it raises there, all processes raise."""
    result, raised = None, None
    if is_first():
        try:
            result = make()
        except Exception as error:
            raised = error
    if from_first(int(raised is not None)):
        raise raised or RuntimeError("The first process failed (see its error), so this one stops too.")
    return result


def to_host(tree: TreeT) -> TreeT:
    """A full copy in NumPy arrays on every process; PRNG keys become their data."""
    return jax.tree.map(lambda x: _to_host(x) if eqx.is_array(x) else x, tree)


def _to_host(x: jax.Array) -> np.ndarray:
    x = jax.random.key_data(x) if _is_key(x) else x
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.array(x)


def placed_like(tree: TreeT, like: TreeT) -> TreeT:
    """The arrays of `tree`, which every process holds in full, sharded like those of `like`."""

    def place(x, like):
        if not isinstance(like, jax.Array) or len(like.sharding.device_set) == 1:
            return x
        if _is_key(like):
            data = place(jax.random.key_data(x), jax.random.key_data(like))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
        return jax.make_array_from_callback(like.shape, like.sharding, np.asarray(x).__getitem__)

    return jax.tree.map(place, tree, like)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@contextlib.contextmanager
def stop_requests(*, catch: bool) -> Iterator[Callable[[int], bool]]:
    """A function that tells after each step, equally on all processes, whether to stop because of a SIGTERM.

    With several processes, JAX's preemption service receives the signal and all agree on a step. A single process
    catches the signal if `catch` is set and this is its main thread, until the block ends.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
    elif not catch or threading.current_thread() is not threading.main_thread():
        yield lambda step: False
    else:
        received = threading.Event()
        previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
        try:
            yield lambda step: received.is_set()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
