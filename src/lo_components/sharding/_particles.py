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
    """The state of meta-training on a mesh: the particles spread over it, everything else on every device.

    The values do not change, so a state from any number of devices continues on any other. With several processes,
    each must hold the same state, and each gets its part of one global state.

    **Arguments:**

    - `state`: for instance from a checkpoint.
    - `mesh`: from [`lo_components.sharding.make_mesh`][].
    - `fsdp_min_size`: as in [`lo_components.sharding.ParticleSharded`][].

    Raises `ValueError` where the particles cannot be shared equally.
    """
    check_mesh(mesh)
    arrays, rest = eqx.partition(state, eqx.is_array)
    everywhere = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), arrays)
    particles = _particle_shardings(arrays.estimator_state, mesh, fsdp_min_size)
    shardings = eqx.tree_at(lambda s: s.estimator_state, everywhere, particles)
    return eqx.combine(placed(arrays, shardings), rest)


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
    """Leading axes over `"particles"`, scalars everywhere; large arrays of inner training over `"fsdp"` too."""

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
            f"The estimator has {shape[0]} particles, which {particles} devices cannot share equally. Choose a "
            f"`num_pairs` that is a multiple of {particles}, or another `particles` in `make_mesh`."
        )
    axes: list[str | None] = ["particles"] + [None] * (len(shape) - 1)
    divisible = [axis for axis in range(1, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp > 1 and divisible and math.prod(shape[1:]) >= min_size:
        axes[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*axes)
