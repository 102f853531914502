import math
from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._types import typechecked

_TreeT = TypeVar("_TreeT")

_AXES = ("particles", "workers", "batch", "fsdp")


@typechecked
def make_mesh(
    particles: int | None = None,
    batch: int = 1,
    fsdp: int = 1,
    *,
    workers: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """A mesh of `particles` x `workers` x `batch` x `fsdp` devices, with automatic axes.

    **Arguments:**

    - `particles`: over how many devices the particles of the estimator are sharded; `None` for as many as are left.
    - `batch`: over how many devices each batch of a task is sharded; see [`lo_components.sharding.BatchSharded`][].
    - `fsdp`: over how many devices each particle's large parameters and optimizer states are sharded.
    - `workers`: over how many devices the workers of a round are sharded; see
        [`lo_components.sharding.WorkerSharded`][].
    - `devices`: the devices to use; `None` for all devices of all processes.

    Raises `ValueError` if a size is below 1, or if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    for name, size in dict(particles=particles, workers=workers, batch=batch, fsdp=fsdp).items():
        if size is not None and size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
    if particles is None:
        particles = max(1, len(devices) // (workers * batch * fsdp))
    sizes = (particles, workers, batch, fsdp)
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"`particles` x `workers` x `batch` x `fsdp` is {' x '.join(map(str, sizes))} = {math.prod(sizes)}, but "
            f"there are {len(devices)} devices; choose sizes whose product is {len(devices)}, or pass a subset of "
            "`jax.devices()` as `devices`."
        )
    # JAX's default, explicit axes, would make shardings a part of the type of every array in the program.
    return jax.make_mesh(sizes, _AXES, axis_types=(AxisType.Auto,) * len(_AXES), devices=devices)


@typechecked
def replicate(tree: _TreeT, mesh: Mesh) -> _TreeT:
    """A pytree with its arrays replicated on every device of a mesh.

    **Arguments:**

    - `tree`: any pytree, for instance a learner; all processes must pass the same values.
    - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][].
    """
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(placed(arrays, jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)), rest)


def check_mesh(mesh: Mesh) -> None:
    if not set(_AXES) <= set(mesh.axis_names) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"`mesh` must have the automatic axes {_AXES}; make it with `make_mesh`.")


def placed(arrays: PyTree[Array], shardings: PyTree[NamedSharding]) -> PyTree[Array]:
    """The arrays with these shardings; global arrays if the mesh spans several processes."""
    return jax.jit(lambda x: x, out_shardings=shardings)(arrays)
