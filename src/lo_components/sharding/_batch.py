from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from ..tasks import AbstractTask, AbstractTaskWrapper
from ._mesh import check_mesh


class BatchSharded(AbstractTaskWrapper):
    """A task whose batches are sharded over a mesh: each device computes a part of every loss and gradient.

    Every inner step then has an all-reduce of the gradients over the devices of `"batch"`.

    Raises `ValueError` if the batch size is not a multiple of the number of devices of `"batch"`.

    **Arguments:**

    - `task`: any task in whose batches the leading axis of every array is that of the examples.
    - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][].
    """

    task: AbstractTask
    mesh: Mesh = eqx.field(static=True)

    def __check_init__(self):
        check_mesh(self.mesh)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        return jax.tree.map(self._sharded, self.task.batch(key=key, split=split, worker=worker))

    def _sharded(self, x: Array) -> Array:
        devices = self.mesh.shape["batch"]
        if x.ndim == 0 or x.shape[0] % devices:
            raise ValueError(
                f"`task` has a batch with an array of shape {x.shape}, whose leading axis is not a multiple of "
                f"{devices}, the number of devices; change the batch size, or `batch` in `make_mesh`."
            )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec("batch")))
