import equinox as eqx

from ._base import AbstractFeature, Channels, TensorView


class Gradient(AbstractFeature):
    """The gradient $g$ itself, one channel. For aggregators: the mean of the workers' deltas.

    Scaling the gradient by $s$ scales it by $s$.
    """

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.grad[None]),)


class Parameter(AbstractFeature):
    """The parameter $p$ before the step, one channel. Does not depend on the gradient."""

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.param[None]),)


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
        if view.deltas is None:
            raise ValueError(
                "`WorkerDeltas` needs the workers' deltas: use it in the pipeline of a `LearnedAggregator`."
            )
        if len(view.deltas) != self.num_workers:
            raise ValueError(
                f"`WorkerDeltas` was built for {self.num_workers} workers, but there are deltas of {len(view.deltas)}; "
                "mark missing workers in `StepContext.present` instead of leaving them out."
            )
        return (Channels(view.deltas),)
