import math
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._learner import Learner
from .._types import typechecked
from ..estimators import AbstractEstimator, Estimate
from ..meta import MetaState
from ..unroll import TrainState
from ._mesh import check_mesh, placed, replicate


@typechecked
def shard_state(state: MetaState, mesh: Mesh, *, fsdp_min_size: int = 2**16) -> MetaState:
    """The state of meta-training on a mesh, with the particles sharded over it and everything else replicated.

    The values do not change, so a run may continue on another number of devices. If there are several processes, all
    must pass the same state, and each gets its part of one global state.

    **Arguments:**

    - `state`: for instance from a checkpoint.
    - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][].
    - `fsdp_min_size`: as in [`lo_components.sharding.ParticleSharded`][].

    Raises `ValueError` if the number of particles is not a multiple of the number of devices of `"particles"`.
    """
    check_mesh(mesh)
    arrays, rest = eqx.partition(state, eqx.is_array)
    everywhere = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)
    particles = _particle_shardings(arrays.estimator_state, mesh, fsdp_min_size)
    shardings = eqx.tree_at(lambda s: s.estimator_state, everywhere, particles)
    return eqx.combine(placed(arrays, shardings), rest)


class ParticleSharded(AbstractEstimator[Any]):
    """An estimator whose particles are sharded over a mesh. The estimate is the same up to the order of summation.

    The noise and the data of a particle depend only on its index and the key, so only the estimate is communicated: a
    sum over devices of one vector with the size of theta, and of a few scalars.
    """

    estimator: AbstractEstimator
    mesh: Mesh = eqx.field(static=True)
    fsdp_min_size: int = eqx.field(static=True)

    def __init__(self, estimator: AbstractEstimator, mesh: Mesh, *, fsdp_min_size: int = 2**16):
        """**Arguments:**

        - `estimator`: any estimator in whose state every array except scalars has the particles as leading axis. Its
            arrays, for instance the task's data set, are replicated on every device.
        - `mesh`: a mesh made by [`lo_components.sharding.make_mesh`][]. The number of particles must be a multiple of
            its number of devices of `"particles"`.
        - `fsdp_min_size`: if an array of parameters or optimizer state has at least this many elements per particle, it
            is also sharded over `"fsdp"`, along its largest divisible axis.
        """
        check_mesh(mesh)
        self.estimator = replicate(estimator, mesh)
        self.mesh = mesh
        self.fsdp_min_size = fsdp_min_size

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> Any:
        return self._spread(self.estimator.init(learner, key=key))

    def estimate(self, learner: Learner, state: Any, *, key: PRNGKeyArray) -> tuple[Estimate, Any]:
        estimate, state = self.estimator.estimate(learner, self._spread(state), key=key)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(estimate, everywhere), self._spread(state)

    def _spread(self, state: Any) -> Any:
        arrays, rest = eqx.partition(state, eqx.is_array)
        shardings = _particle_shardings(arrays, self.mesh, self.fsdp_min_size)
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, shardings), rest)


def _particle_shardings(arrays: PyTree[Array], mesh: Mesh, fsdp_min_size: int) -> PyTree[NamedSharding]:
    """Leading axes over `"particles"`, large arrays of inner training also over `"fsdp"`; scalars are replicated."""

    def shardings(node):
        min_size = fsdp_min_size if _is_train_state(node) else math.inf
        return jax.tree.map(lambda x: NamedSharding(mesh, _particle_spec(x.shape, mesh, min_size)), node)

    return jax.tree.map(shardings, arrays, is_leaf=_is_train_state)


def _is_train_state(node: Any) -> bool:
    return isinstance(node, TrainState)


def _particle_spec(shape: tuple[int, ...], mesh: Mesh, min_size: int | float) -> PartitionSpec:
    if not shape:
        return PartitionSpec()
    particles, fsdp = mesh.shape["particles"], mesh.shape["fsdp"]
    if shape[0] % particles:
        raise ValueError(
            f"The estimator has {shape[0]} particles, which is not a multiple of {particles}, the number of devices. "
            f"Choose a `num_pairs` that is a multiple of {particles}, or another `particles` in `make_mesh`."
        )
    axes: list[str | None] = ["particles"] + [None] * (len(shape) - 1)
    divisible = [axis for axis in range(1, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp > 1 and divisible and math.prod(shape[1:]) >= min_size:
        axes[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*axes)
