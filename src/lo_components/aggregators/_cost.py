import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._types import typechecked


class RoundCost(eqx.Module):
    """The cost of one round.

    **Arguments:**

    - `bytes_sent`: bytes that each worker sends.
    - `local_steps`: local steps of each worker.
    - `samples`: training examples that all workers use together.
    """

    bytes_sent: float
    local_steps: int
    samples: int


@typechecked
def round_cost(params: PyTree, num_workers: int, *, local_steps: int = 1, batch_size: int = 1) -> RoundCost:
    r"""The cost of a round of $K$ workers with $H$ local steps each.

    For $n$ parameters, whose deltas are float32, each worker sends $8 n (K - 1) / K$ bytes, as in a ring all-reduce.
    With one device per worker, [`lo_components.sharding.WorkerSharded`][] sends the same, plus sums of statistics, and
    more for tensors that cannot be divided evenly.

    **Arguments:**

    - `params`: the parameters, or their shapes (`jax.ShapeDtypeStruct`).
    - `num_workers`: $K$.
    - `local_steps`: $H$.
    - `batch_size`: examples per local step of one worker.

    Raises `ValueError` if a number is below 1.
    """
    for name, value in dict(num_workers=num_workers, local_steps=local_steps, batch_size=batch_size).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    count = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params))
    return RoundCost(8 * count * (num_workers - 1) / num_workers, local_steps, num_workers * local_steps * batch_size)
