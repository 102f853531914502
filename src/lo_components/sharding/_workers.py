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
    r"""A round whose workers are spread over a mesh. The result is the same up to the order of summation.

    Local steps communicate nothing. Then every device exchanges its workers' deltas for a slice of all workers' (an
    all-to-all), aggregates that slice, and sends the result to the others (an all-gather). With as many devices as
    workers that is what a ring takes to sum $P$ parameters over them, $2P(K-1)/K$ from each, whether the aggregator
    looks at every delta or at the mean alone, and the aggregator's own arithmetic and memory are shared as well.
    Statistics of whole tensors stay those of whole tensors: their partial sums are added up.

    **Arguments:**

    - `inner`: the round.
    - `mesh`: from [`lo_components.sharding.make_mesh`][], with `"workers"` devices among which those of the round can
        be divided equally.
    - `slices`: whether to exchange slices. `False` leaves deltas where they are, for aggregators that use nothing but
        their mean: its sum, one all-reduce, is then all that a round communicates, and each device computes the whole
        update.

    Raises `ValueError` where the workers cannot be shared equally.
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
                f"The round has {self.inner.num_workers} workers, which {devices} devices cannot share equally. Choose "
                f"a `num_workers` that is a multiple of {devices}, or another `workers` in `make_mesh`."
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

        # Without the check that results agree between devices: it would sum gradients of what they share over them.
        spread, everywhere = PartitionSpec("workers"), PartitionSpec()
        losses, deltas = jax.shard_map(
            local, mesh=self.mesh, in_specs=(everywhere, spread, spread), out_specs=spread, check_vma=False
        )(arrays, *self.inner.workers(key))
        deltas = sliced(deltas, self.mesh) if self.slices else deltas
        loss, params, learner_state = self.inner.aggregated(
            learner, task, params, learner_state, losses, deltas, num_steps, key=key
        )
        return loss, _constrained(params, self.mesh, everywhere), learner_state


def _refuse_batch_sharded(task: AbstractTask) -> None:
    while isinstance(task, AbstractTaskWrapper):
        if isinstance(task, BatchSharded):
            raise ValueError("`task` must not be a `BatchSharded` one: a worker's batch stays on the worker's device.")
        task = task.task


@typechecked
def sliced(deltas: _DeltasT, mesh: Mesh) -> _DeltasT:
    """Deltas `[workers, *shape]` of which each device holds every worker's slice, for an aggregator to follow.

    To be called under `jit`, with deltas that are spread over the mesh by workers; it is where they are exchanged. Each
    tensor is cut along the axis whose slices are the most equal, not along the first if another will do. One that this
    would make dearer, as a single number, goes to all devices whole.

    **Arguments:**

    - `deltas`: each leaf `[workers, *shape]`.
    - `mesh`: from [`lo_components.sharding.make_mesh`][].
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
        """The largest slice, as a multiple of an equal share."""
        return -(-shape[axis] // devices) * devices / shape[axis]

    def order(axis: int):
        # The first axis last: large tensors are evaluated in blocks of rows, which slices of rows would interrupt.
        return axis == 1 and in_blocks, padded(axis) > 1.25, axis == 1, padded(axis), -shape[axis]

    axis = min(axes, key=order)
    # Sending all to all costs half as many sums as there are devices.
    return PartitionSpec(*[None] * axis, "workers") if padded(axis) <= devices / 2 else PartitionSpec()


def _constrained(tree: _DeltasT, mesh: Mesh, spec: PartitionSpec) -> _DeltasT:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
