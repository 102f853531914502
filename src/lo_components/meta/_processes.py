"""Helpers for meta-training in one or several processes."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

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


STOPPED = 143  # 128 + SIGTERM, the exit status of a process that the signal ended


@contextlib.contextmanager
def stop_requests(*, catch: bool) -> Iterator[Callable[[int], BaseException | None]]:
    """A function that tells after each step, equally on all processes, whether a signal asks to stop.

    It returns what to raise then: `KeyboardInterrupt` after SIGINT, `SystemExit` after SIGTERM. A single process
    catches the signals if `catch` is set and this is its main thread, until the block ends. With several processes,
    JAX's preemption service receives SIGTERM and all agree on a step; a SIGINT is passed on to it. A second SIGINT has
    the effect that it has outside of the block.
    """
    received: list[int] = []
    several = jax.process_count() > 1

    def request(number, frame):
        received.append(number)
        if several:
            signal.raise_signal(signal.SIGTERM)

    def interrupt(number, frame):
        if number in received and callable(before[number]):
            before[number](number, frame)
        else:
            request(number, frame)

    def stop(step: int) -> BaseException | None:
        asked = multihost_utils.reached_preemption_sync_point(step) if several else bool(received)
        if not asked:
            return None
        return KeyboardInterrupt() if signal.SIGINT in received else SystemExit(STOPPED)

    handlers = {signal.SIGINT: interrupt} | ({} if several else {signal.SIGTERM: request})
    if threading.current_thread() is not threading.main_thread() or not (catch or several):
        handlers = {}
    # Who ignores Ctrl-C, such as a job in the background of a shell, goes on ignoring it.
    handlers = {n: f for n, f in handlers.items() if (n, signal.getsignal(n)) != (signal.SIGINT, signal.SIG_IGN)}
    before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
