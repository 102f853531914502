"""Tasks whose training batches come from a stream."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .. import _tree
from .._types import Params, typechecked
from ._base import AbstractMeasuredTask, AbstractTask
from ._wrapper import AbstractTaskWrapper

TreeT = TypeVar("TreeT")


class Streamed(AbstractTaskWrapper, AbstractMeasuredTask[Any]):
    """The same task with training batches from a stream, of which it holds one window at a time.

    A training batch is one of the window's batches, chosen uniformly with the key; workers choose independently.
    Batches of other splits, and metrics, are those of `task`, for instance of a part of the data that fits on the
    device.

    [`lo_components.meta.meta_train`][] and [`lo_components.meta.evaluate`][] put in one window after the other if they
    are called with a `stream`; in your own loop, [`lo_components.tasks.with_window`][] does. The window is an argument
    of the compiled step, so the next one does not compile it again.

    **Arguments:**

    - `task`: the task; the batches of the stream have the shapes and dtypes of its own batches.
    - `num_batches`: the number of batches per window.
    - `batches`: the window, from `with_window`. Without one, training batches raise `ValueError`.

    Raises `ValueError` if `num_batches` is below 1; `metrics` raises `TypeError` if `task` has none.
    """

    task: AbstractTask
    num_batches: int = eqx.field(static=True)
    batches: PyTree[Shaped[Array, "num_batches ..."]] | None = None

    def __check_init__(self):
        if self.num_batches < 1:
            raise ValueError(f"`num_batches` must be at least 1, got {self.num_batches}.")

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        if split != "train":
            return self.task.batch(key=key, split=split, worker=worker)
        if self.batches is None:
            raise ValueError(
                "`Streamed` has no window of batches yet: pass `stream=` to `meta_train` or `evaluate`, or put one in "
                "with `lo_components.tasks.with_window`."
            )
        index = jax.random.randint(key, (), 0, jax.tree.leaves(self.batches)[0].shape[0])
        return jax.tree.map(lambda x: x[index], self.batches)

    def metrics(self, params: Params, *, split: str, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
        """The metrics of `task` at `params` on `split`."""
        if not isinstance(self.task, AbstractMeasuredTask):
            raise TypeError(
                f"`splits` needs a task with metrics, but {type(self.task).__name__} is not an "
                "`lo_components.tasks.AbstractMeasuredTask`."
            )
        return self.task.metrics(params, split=split, key=key)


@typechecked
def streamed_tasks(tree: PyTree) -> list[Streamed]:
    """Every [`lo_components.tasks.Streamed`][] in a tree.

    **Arguments:**

    - `tree`: for instance an estimator, or a task.

    **Returns:** the tasks, in the order of the tree.
    """
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_streamed) if _is_streamed(node)]


@typechecked
def with_window(tree: TreeT, batches: PyTree) -> TreeT:
    """A tree with a window of batches put into every [`lo_components.tasks.Streamed`][] in it.

    **Arguments:**

    - `tree`: for instance an estimator, or a task.
    - `batches`: a window from [`lo_components.data.windows`][], best transferred to the device ahead of time by
        [`lo_components.data.prefetch_to_device`][]; `None` takes out the present one.

    **Returns:** a tree of the same structure.

    Raises `ValueError` if no task is streamed, or if the window does not have the structure, shapes and dtypes of
    `num_batches` of the task's batches.
    """
    if not streamed_tasks(tree):
        raise ValueError(
            "`tree` has no `lo_components.tasks.Streamed` to put a window into; wrap the task, "
            "`Streamed(task, num_batches)`."
        )
    window = jax.tree.map(jnp.asarray, batches)
    return jax.tree.map(lambda node: _filled(node, window) if _is_streamed(node) else node, tree, is_leaf=_is_streamed)


def _is_streamed(node: Any) -> bool:
    return isinstance(node, Streamed)


def _filled(streamed: Streamed, batches: PyTree[Array] | None) -> Streamed:
    if batches is not None and (words := _tree.difference(batches, _expected(streamed))):
        raise ValueError(
            f"`batches` must be {streamed.num_batches} stacked batches like those of {type(streamed.task).__name__}: "
            f"{words}."
        )
    return dataclasses.replace(streamed, batches=batches)


def _expected(streamed: Streamed) -> PyTree[Array | jax.ShapeDtypeStruct]:
    """The structure, shapes and dtypes of a window."""
    if streamed.batches is not None:
        return streamed.batches
    batch = eqx.filter_eval_shape(lambda: streamed.task.batch(key=jax.random.key(0)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((streamed.num_batches, *x.shape), x.dtype), batch)
