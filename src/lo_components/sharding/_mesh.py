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
    """A mesh of `particles` x `workers` x `batch` x `fsdp` devices, whose axes the compiler may use as it sees fit.

    **Arguments:**

    - `particles`: devices that share the estimator's particles; `None`: as many as there are.
    - `batch`: devices that share each batch of the optimizee; see [`lo_components.sharding.BatchSharded`][].
    - `fsdp`: devices that share each particle's large parameters and optimizer state.
    - `workers`: devices that share the workers of a round; see [`lo_components.sharding.WorkerSharded`][].
    - `devices`: which devices; `None`: all devices of all processes.

    Raises `ValueError` where the sizes do not multiply to the number of devices.
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
            f"there are {len(devices)} devices. Choose sizes that multiply to {len(devices)}, or pass as `devices` "
            "some of `jax.devices()`."
        )
    # JAX's own default, explicit axes, would put shardings into the types of all arrays in the program.
    return jax.make_mesh(sizes, _AXES, axis_types=(AxisType.Auto,) * len(_AXES), devices=devices)


@typechecked
def replicate(tree: _TreeT, mesh: Mesh) -> _TreeT:
    """A pytree whose arrays are on every device of the mesh; with several processes, each must hold the same values.

    **Arguments:**

    - `tree`: for instance a learner.
    - `mesh`: from [`lo_components.sharding.make_mesh`][].
    """
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(placed(arrays, jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)), rest)


def check_mesh(mesh: Mesh) -> None:
    if not set(_AXES) <= set(mesh.axis_names) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"`mesh` must have the axes {_AXES}, all of them automatic; make it with `make_mesh`.")


def placed(arrays: PyTree[Array], shardings: PyTree[NamedSharding]) -> PyTree[Array]:
    """The arrays with these shardings, global ones where the mesh spans processes."""
    return jax.jit(lambda x: x, out_shardings=shardings)(arrays)
