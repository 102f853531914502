from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..accumulators import TensorView
from ._base import AbstractFeature, Channels


class WorkerDeltas(AbstractFeature):
    """Every worker's delta $d_k$ (new minus old parameters), one channel per worker, in order.

    Linear in the deltas. Only for learned aggregators, whose tensor views have deltas.

    Raises `ValueError` if the view has no deltas, or the deltas of another number of workers.

    ??? cite "Source"
        LAgg-A of *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    pointwise: ClassVar[bool] = True
    num_workers: int = eqx.field(static=True)

    def __init__(self, num_workers: int):
        """**Arguments:**

        - `num_workers`: the number of workers, on which the shape of the head's first weights depends.

        Raises `ValueError` if `num_workers` is below 1.
        """
        self.num_workers = num_workers

    def __check_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {self.num_workers}.")

    @property
    def size(self) -> int:
        return self.num_workers

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        deltas = view.required("deltas")
        if len(deltas) != self.num_workers:
            raise ValueError(
                f"`WorkerDeltas` was built for {self.num_workers} workers, but got deltas from {len(deltas)}; "
                "mark missing workers in `StepContext.present` instead of leaving them out."
            )
        return (Channels(deltas),)


class PooledWorkerDeltas(AbstractFeature):
    r"""A pooled embedding of the workers' deltas $d_k$, for any number $K$ of workers in any order. Channel $j$ is

    $$\frac1K \sum_k \max(0,\; a_j d_k + b_j \bar d),$$

    with the mean delta $\bar d$ and learned $a$, $b$. The channels show how far the workers agree on an element, which
    the mean does not. Scaling the deltas by $s > 0$ scales the channels by $s$.

    Raises `ValueError` if the view has no deltas.

    ??? cite "Source"
        Zaheer et al., *Deep Sets* (arXiv 1703.06114), theorem 2, in the place of `WorkerDeltas` in LAgg-A.
    """

    pointwise: ClassVar[bool] = True
    worker: Float[Array, " c"]
    mean: Float[Array, " c"]

    def __init__(self, size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `size`: the number of channels.
        - `key`: for the initial embedding.

        Raises `ValueError` if `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}.")
        self.worker, self.mean = jax.random.normal(key, (2, size), jnp.float32)

    @property
    def size(self) -> int:
        return self.worker.shape[0]

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        deltas = view.required("deltas")

        def channel(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, "*shape"]:
            return jnp.mean(jax.nn.relu(a * deltas + b * view.grad[None]), axis=0)

        return (Channels(jax.vmap(channel)(self.worker, self.mean)),)
