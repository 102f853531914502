import math
from typing import ClassVar, TypeVar

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._types import Params, typechecked
from ..aggregators import AbstractAggregator
from ..tasks import AbstractTask, AbstractTaskWrapper
from ..unroll import AbstractInnerStep, LocalRound
from ._batch import BatchSharded
from ._mesh import check_mesh

_DeltasT = TypeVar("_DeltasT")


class WorkerSharded(AbstractInnerStep[AbstractAggregator]):
    r"""A round whose workers are sharded over a mesh. The result is the same up to the order of summation.

    Local steps communicate nothing. After them, each device exchanges the full deltas of its workers for one slice of
    the deltas of all workers (an all-to-all), aggregates that slice, and sends the result to all devices (an
    all-gather). If there are as many devices as workers, each device sends $2P(K-1)/K$ numbers for $P$ parameters, as
    much as in a ring all-reduce, even if the aggregator looks at every delta. Computation and memory of the aggregator
    are divided between the devices as well. Statistics of whole tensors are exact: partial sums are added up.

    **Arguments:**

    - `inner`: the round.
    - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][]. The number of workers must be a multiple of its
        number of devices of `"workers"`.
    - `slices`: whether to exchange slices. `False` is for aggregators that use only the mean of the deltas: a round
        then communicates one sum (an all-reduce), and each device computes the whole update.

    Raises `ValueError` if the number of workers is not a multiple of the number of devices. Its `step` raises
    `ValueError` if the batches of the task are sharded.
    """

    reverse_mode: ClassVar[bool] = False
    inner: LocalRound
    mesh: Mesh = eqx.field(static=True)
    slices: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        check_mesh(self.mesh)
        devices = self.mesh.shape["workers"]
        if self.inner.num_workers % devices:
            raise ValueError(
                f"The round has {self.inner.num_workers} workers, which is not a multiple of {devices}, the number of "
                f"devices. Choose a `num_workers` that is a multiple of {devices}, or another `workers` in `make_mesh`."
            )

    def init(self, learner: AbstractAggregator, params: Params) -> PyTree:
        return self.inner.init(learner, params)

    def step(
        self,
        learner: AbstractAggregator,
        task: AbstractTask,
        params: Params,
        learner_state: PyTree,
        num_steps: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Params, PyTree]:
        _refuse_batch_sharded(task)
        arrays, rest = eqx.partition((self.inner, task, params), eqx.is_array)

        def local(arrays, workers, keys):
            inner, task, params = eqx.combine(arrays, rest)
            return inner.local(task, params, workers, keys)

        # With `check_vma`, gradients with respect to replicated arrays would be summed over the devices.
        spread, everywhere = PartitionSpec("workers"), PartitionSpec()
        losses, deltas = jax.shard_map(
            local, mesh=self.mesh, in_specs=(everywhere, spread, spread), out_specs=spread, check_vma=False
        )(arrays, *self.inner.workers(key=key))
        deltas = sliced(deltas, self.mesh) if self.slices else deltas
        loss, params, learner_state = self.inner.aggregated(
            learner, task, params, learner_state, losses, deltas, num_steps, key=key
        )
        return loss, _constrained(params, self.mesh, everywhere), learner_state


def _refuse_batch_sharded(task: AbstractTask) -> None:
    while isinstance(task, AbstractTaskWrapper):
        if isinstance(task, BatchSharded):
            raise ValueError("`task` must not be `BatchSharded`: the batches of a worker stay on its device.")
        task = task.task


@typechecked
def sliced(deltas: _DeltasT, mesh: Mesh) -> _DeltasT:
    """Exchange deltas between devices (an all-to-all), so that each device holds one slice of every worker's delta.

    Call it under `jit`, on deltas that are sharded over `"workers"`, and pass the result to an aggregator. Each tensor
    is sliced along the axis whose slices are most equal in size, and along the first axis only if no other is suitable.
    Tensors too small to benefit, such as scalars, are replicated.

    **Arguments:**

    - `deltas`: a pytree whose leaves are `[workers, *shape]`.
    - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][].

    **Returns:** the deltas, with the same values and shapes.
    """
    check_mesh(mesh)
    devices = mesh.shape["workers"]
    return jax.tree.map(lambda d: _constrained(d, mesh, _slice_spec(d.shape, devices)), deltas)


def _slice_spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    axes = [axis for axis in range(1, len(shape)) if shape[axis]]
    if not axes:
        return PartitionSpec()
    in_blocks = math.prod(shape[1:]) >= _tree.BLOCKED_FROM

    def padded(axis: int) -> float:
        """The size of the largest slice, divided by that of an equal slice."""
        return -(-shape[axis] // devices) * devices / shape[axis]

    def order(axis: int):
        # Prefer other axes to the first: large tensors are computed in blocks of rows, which slices would split.
        return axis == 1 and in_blocks, padded(axis) > 1.25, axis == 1, padded(axis), -shape[axis]

    axis = min(axes, key=order)
    # Sending every delta to every device costs as much as `devices / 2` sums.
    return PartitionSpec(*[None] * axis, "workers") if padded(axis) <= devices / 2 else PartitionSpec()


def _constrained(tree: _DeltasT, mesh: Mesh, spec: PartitionSpec) -> _DeltasT:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
