import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._types import typechecked


class RoundCost(eqx.Module):
    """What a round costs; multiply by rounds.

    **Arguments:**

    - `bytes_sent`: by each worker.
    - `local_steps`: of each worker.
    - `samples`: of all workers together.
    """

    bytes_sent: float
    local_steps: int
    samples: int


@typechecked
def round_cost(params: PyTree, num_workers: int, *, local_steps: int = 1, batch_size: int = 1) -> RoundCost:
    r"""What a round of $K$ workers with $H$ local steps costs.

    Each worker sends $8 n (K - 1) / K$ bytes for $n$ parameters, whose deltas are float32: what summing them in a ring
    takes, and with a device for each worker also what [`lo_components.sharding.WorkerSharded`][] takes, but for sums of
    statistics and for tensors that cannot be cut equally.

    **Arguments:**

    - `params`: the parameters, or arrays' shapes (`jax.ShapeDtypeStruct`) in their place.
    - `num_workers`: $K$.
    - `local_steps`: $H$.
    - `batch_size`: examples in a worker's local step.

    Raises `ValueError` where a number is below 1.
    """
    for name, value in dict(num_workers=num_workers, local_steps=local_steps, batch_size=batch_size).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    count = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params))
    return RoundCost(8 * count * (num_workers - 1) / num_workers, local_steps, num_workers * local_steps * batch_size)
