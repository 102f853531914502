from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from ..tasks import AbstractTask, AbstractTaskWrapper
from ._mesh import check_mesh


class BatchSharded(AbstractTaskWrapper):
    """A task whose batches are spread over a mesh, so that each device computes a part of every loss and gradient.

    Adds a sum over the devices of `"batch"`, of the size of the parameters, to every inner step.

    **Arguments:**

    - `task`: any task whose batches have the examples as leading axis of every array.
    - `mesh`: from [`lo_components.sharding.make_mesh`][]; the batch size must be divisible by its `"batch"`.
    """

    task: AbstractTask
    mesh: Mesh = eqx.field(static=True)

    def __check_init__(self):
        check_mesh(self.mesh)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        return jax.tree.map(self._spread, self.task.batch(key=key, split=split, worker=worker))

    def _spread(self, x: Array) -> Array:
        devices = self.mesh.shape["batch"]
        if x.ndim == 0 or x.shape[0] % devices:
            raise ValueError(
                f"The task's batch has an array of shape {x.shape}, whose leading axis {devices} devices cannot share "
                f"equally. Choose a batch size that is a multiple of {devices}, or another `batch` in `make_mesh`."
            )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec("batch")))
