"""Meta-training on many devices: a mesh, and wrappers that spread particles, batches and large parameters over it."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._types import Params, Scales, typechecked
from .estimators import AbstractEstimator, Estimate
from .meta import MetaState
from .tasks import AbstractTask
from .unroll import InnerState

_TreeT = TypeVar("_TreeT")

_AXES = ("particles", "batch", "fsdp")


@typechecked
def make_mesh(
    particles: int | None = None,
    batch: int = 1,
    fsdp: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """A mesh of `particles` x `batch` x `fsdp` devices, whose axes the compiler may use as it sees fit.

    **Arguments:**

    - `particles`: devices that share the estimator's particles; `None`: as many as there are.
    - `batch`: devices that share each batch of the optimizee; see [`lo_components.sharding.BatchSharded`][].
    - `fsdp`: devices that share each particle's large parameters and optimizer state.
    - `devices`: which devices; `None`: all devices of all processes.

    Raises `ValueError` where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    for name, size in dict(particles=particles, batch=batch, fsdp=fsdp).items():
        if size is not None and size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
    if particles is None:
        particles = max(1, len(devices) // (batch * fsdp))
    if particles * batch * fsdp != len(devices):
        raise ValueError(
            f"`particles` x `batch` x `fsdp` is {particles} x {batch} x {fsdp} = {particles * batch * fsdp}, but there "
            f"are {len(devices)} devices. Choose sizes that multiply to {len(devices)}, or pass as `devices` some of "
            "`jax.devices()`."
        )
    # JAX's own default, explicit axes, would put shardings into the types of all arrays in the program.
    return jax.make_mesh((particles, batch, fsdp), _AXES, axis_types=(AxisType.Auto,) * len(_AXES), devices=devices)


@typechecked
def shard_state(state: MetaState, mesh: Mesh, *, fsdp_min_size: int = 2**16) -> MetaState:
    """The state of meta-training on a mesh: the particles spread over it, everything else on every device.

    The values do not change, so a state from any number of devices continues on any other. With several processes,
    each must hold the same state, and each gets its part of one global state.

    **Arguments:**

    - `state`: for instance from a checkpoint.
    - `mesh`: from [`lo_components.sharding.make_mesh`][].
    - `fsdp_min_size`: as in [`lo_components.sharding.ParticleSharded`][].

    Raises `ValueError` where the particles cannot be shared equally.
    """
    _check_mesh(mesh)
    arrays, rest = eqx.partition(state, eqx.is_array)
    everywhere = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)
    particles = _particle_shardings(arrays.estimator_state, mesh, fsdp_min_size)
    shardings = eqx.tree_at(lambda s: s.estimator_state, everywhere, particles)
    return eqx.combine(_placed(arrays, shardings), rest)


@typechecked
def replicate(tree: _TreeT, mesh: Mesh) -> _TreeT:
    """A pytree whose arrays are on every device of the mesh; with several processes, each must hold the same values.

    **Arguments:**

    - `tree`: for instance a learner.
    - `mesh`: from [`lo_components.sharding.make_mesh`][].
    """
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(_placed(arrays, jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)), rest)


class ParticleSharded(AbstractEstimator[Any]):
    """An estimator whose particles are spread over a mesh. The estimate is the same up to the order of summation.

    A particle's noise and data depend on its index alone, so nothing but the estimate is communicated: the sum over
    devices of an array per array of theta, and of a few scalars.
    """

    estimator: AbstractEstimator
    mesh: Mesh = eqx.field(static=True)
    fsdp_min_size: int = eqx.field(static=True)

    def __init__(self, estimator: AbstractEstimator, mesh: Mesh, *, fsdp_min_size: int = 2**16):
        """**Arguments:**

        - `estimator`: any estimator whose state has the particles as leading axis of every array that is no scalar. Its
            arrays, for instance the task's data set, are copied to every device.
        - `mesh`: from [`lo_components.sharding.make_mesh`][]; the number of particles must be divisible by its
            `"particles"`.
        - `fsdp_min_size`: parameters and optimizer state of inner training are spread over the mesh's `"fsdp"` where
            one particle's array has at least this many elements, along its largest axis that is divisible.
        """
        _check_mesh(mesh)
        self.estimator = replicate(estimator, mesh)
        self.mesh = mesh
        self.fsdp_min_size = fsdp_min_size

    def init(self, learner: Any, *, key: PRNGKeyArray) -> Any:
        return self._spread(self.estimator.init(learner, key=key))

    def estimate(self, learner: Any, state: Any, *, key: PRNGKeyArray) -> tuple[Estimate, Any]:
        estimate, state = self.estimator.estimate(learner, self._spread(state), key=key)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(estimate, everywhere), self._spread(state)

    def _spread(self, state: Any) -> Any:
        arrays, rest = eqx.partition(state, eqx.is_array)
        shardings = _particle_shardings(arrays, self.mesh, self.fsdp_min_size)
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, shardings), rest)


class BatchSharded(AbstractTask[Any]):
    """A task whose batches are spread over a mesh, so that each device computes a part of every loss and gradient.

    Adds a sum over the devices of `"batch"`, of the size of the parameters, to every inner step.

    **Arguments:**

    - `task`: any task whose batches have the examples as leading axis of every array.
    - `mesh`: from [`lo_components.sharding.make_mesh`][]; the batch size must be divisible by its `"batch"`.
    """

    task: AbstractTask
    mesh: Mesh = eqx.field(static=True)

    def __check_init__(self):
        _check_mesh(self.mesh)

    @property
    def update_scales(self) -> Scales | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.task.update_scales

    @property
    def max_loss(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.task.max_loss

    def init(self, *, key: PRNGKeyArray) -> Params:
        return self.task.init(key=key)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        return jax.tree.map(self._spread, self.task.batch(key=key, split=split, worker=worker))

    def loss(self, params: Params, batch: Any, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return self.task.loss(params, batch, key=key)

    def _spread(self, x: Array) -> Array:
        devices = self.mesh.shape["batch"]
        if x.ndim == 0 or x.shape[0] % devices:
            raise ValueError(
                f"The task's batch has an array of shape {x.shape}, whose leading axis {devices} devices cannot share "
                f"equally. Choose a batch size that is a multiple of {devices}, or another `batch` in `make_mesh`."
            )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec("batch")))


def _check_mesh(mesh: Mesh) -> None:
    if not set(_AXES) <= set(mesh.axis_names) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"`mesh` must have the axes {_AXES}, all of them automatic; make it with `make_mesh`.")


def _particle_shardings(arrays: PyTree[Array], mesh: Mesh, fsdp_min_size: int) -> PyTree[NamedSharding]:
    """Leading axes over `"particles"`, scalars everywhere; large arrays of inner training over `"fsdp"` too."""

    def shardings(node):
        min_size = fsdp_min_size if _is_inner_state(node) else math.inf
        return jax.tree.map(lambda x: NamedSharding(mesh, _particle_spec(x.shape, mesh, min_size)), node)

    return jax.tree.map(shardings, arrays, is_leaf=_is_inner_state)


def _is_inner_state(node: Any) -> bool:
    return isinstance(node, InnerState)


def _particle_spec(shape: tuple[int, ...], mesh: Mesh, min_size: int | float) -> PartitionSpec:
    if not shape:
        return PartitionSpec()
    particles, fsdp = mesh.shape["particles"], mesh.shape["fsdp"]
    if shape[0] % particles:
        raise ValueError(
            f"The estimator has {shape[0]} particles, which {particles} devices cannot share equally. Choose a "
            f"`num_pairs` that is a multiple of {particles}, or another `particles` in `make_mesh`."
        )
    axes: list[str | None] = ["particles"] + [None] * (len(shape) - 1)
    divisible = [axis for axis in range(1, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp > 1 and divisible and math.prod(shape[1:]) >= min_size:
        axes[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*axes)


def _placed(arrays: PyTree[Array], shardings: PyTree[NamedSharding]) -> PyTree[Array]:
    """The arrays with these shardings, global ones where the mesh spans processes."""
    return jax.jit(lambda x: x, out_shardings=shardings)(arrays)
