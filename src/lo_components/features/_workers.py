import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._base import AbstractFeature, Channels, TensorView


class WorkerDeltas(AbstractFeature):
    """Every worker's delta $d_k$ (new minus old), one channel per worker in their order.

    Scaling the deltas by $s$ scales it by $s$. For the pipeline of a `LearnedAggregator`, which fills `view.deltas`.

    Raises `ValueError` for a view without deltas, or with those of another number of workers.

    ??? cite "Source"
        LAgg-A of *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    num_workers: int = eqx.field(static=True)

    def __init__(self, num_workers: int):
        """**Arguments:**

        - `num_workers`: how many workers there are; the head's first weights depend on it.
        """
        self.num_workers = num_workers

    def __check_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {self.num_workers}.")

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_workers

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        deltas = _deltas(view, "WorkerDeltas")
        if len(deltas) != self.num_workers:
            raise ValueError(
                f"`WorkerDeltas` was built for {self.num_workers} workers, but there are deltas of {len(deltas)}; "
                "mark missing workers in `StepContext.present` instead of leaving them out."
            )
        return (Channels(deltas),)


class PooledWorkerDeltas(AbstractFeature):
    r"""What the workers' deltas $d_k$ have in common, for any number $K$ of workers in any order, one channel per $j$:

    $$\frac1K \sum_k \max(0,\; a_j d_k + b_j \bar d),$$

    with the mean delta $\bar d$ and learned $a$, $b$: a shared embedding of each worker, pooled. The channels tell how
    far workers agree on an element, which the mean cannot. Scaling the deltas by $s > 0$ scales it by $s$.

    Raises `ValueError` for a view without deltas.

    ??? cite "Source"
        Zaheer et al., *Deep Sets* (arXiv 1703.06114), theorem 2, in the place of `WorkerDeltas` in LAgg-A.
    """

    worker: Float[Array, " c"]
    mean: Float[Array, " c"]

    def __init__(self, size: int, *, key: PRNGKeyArray):
        """**Arguments:**

        - `size`: how many channels.
        - `key`: for the initial embedding.
        """
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}.")
        self.worker, self.mean = jax.random.normal(key, (2, size), jnp.float32)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.worker.shape[0]

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        deltas = _deltas(view, "PooledWorkerDeltas")

        def channel(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, "*shape"]:
            return jnp.mean(jax.nn.relu(a * deltas + b * view.grad[None]), axis=0)

        return (Channels(jax.vmap(channel)(self.worker, self.mean)),)


def _deltas(view: TensorView, name: str) -> Float[Array, "workers *shape"]:
    if view.deltas is None:
        raise ValueError(f"`{name}` needs the workers' deltas: use it in the pipeline of a `LearnedAggregator`.")
    return view.deltas
