import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Params, typechecked


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
def round_cost(params: Params, num_workers: int, *, local_steps: int = 1, batch_size: int = 1) -> RoundCost:
    r"""What a round of $K$ workers with $H$ local steps costs.

    Each worker sends $2 P (K - 1) / K$ bytes for parameters of $P$ bytes: what summing deltas in a ring takes, and what
    [`lo_components.sharding.WorkerSharded`][] takes for aggregators that see every worker's delta. With one local step
    it is the cost of a step of data-parallel training.

    **Arguments:**

    - `params`: the parameters; deltas are counted in their dtype.
    - `num_workers`: $K$.
    - `local_steps`: $H$.
    - `batch_size`: examples in a worker's local step.

    Raises `ValueError` where a number is below 1.
    """
    for name, value in dict(num_workers=num_workers, local_steps=local_steps, batch_size=batch_size).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    size = sum(jnp.size(x) * jnp.result_type(x).itemsize for x in jax.tree.leaves(params))
    return RoundCost(2 * size * (num_workers - 1) / num_workers, local_steps, num_workers * local_steps * batch_size)
