import dataclasses

from jaxtyping import Array, Float, PyTree

from .._types import Params
from ..optimizers import LearnedOptimizer, LearnedOptimizerState, StepContext
from ._base import AbstractMaskedAggregator


class LearnedAggregator(AbstractMaskedAggregator[LearnedOptimizerState]):
    r"""The pipeline of a learned optimizer with the mean delta $\bar d$ in place of the gradient.

    Accumulators are fed $\bar d$, and [`lo_components.features.Gradient`][] shows it to the head. Nothing is flipped
    and nothing is added to the head's step: what becomes of a delta, its sign included, is learned. A pipeline with
    [`lo_components.features.WorkerDeltas`][] sees each worker's delta as well. It has a fixed number of workers, and
    depends on their order; a worker that is absent or not finite is shown as the mean of the others.

    **Arguments:**

    - `optimizer`: the pipeline of accumulators, features, head and step rule.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    optimizer: LearnedOptimizer

    def start(self, params: Params) -> LearnedOptimizerState:
        return self.optimizer.init(params)

    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: LearnedOptimizerState,
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], LearnedOptimizerState]:
        context = dataclasses.replace(context, deltas=deltas)
        return self.optimizer.update(mean, state, params, context=context)
