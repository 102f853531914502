import jax
from jaxtyping import Array, Float, PyTree

from .._types import Params
from ..optimizers import StepContext
from ..parametrization import UpdateRule
from ..pipeline import Pipeline, PipelineState, init_tree, update_tree
from ._base import AbstractMaskedAggregator


class LearnedAggregator(AbstractMaskedAggregator[PipelineState]):
    r"""A learned global update: one pipeline, which sees the mean delta $\bar d$ in place of the gradient.

    Accumulators are updated with $\bar d$, and [`lo_components.features.Gradient`][] shows it to the head. Its sign is
    not flipped, and the mean is not added to the head's step: meta-training learns how to use deltas. A pipeline with
    [`lo_components.features.WorkerDeltas`][] also sees each worker's delta. It is built for a fixed number of workers
    and depends on their order; deltas that are absent or not finite are replaced by the mean of the others.

    **Arguments:**

    - `pipeline`: maps a tensor's deltas to its update.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """

    pipeline: Pipeline

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return jax.tree.map(self.pipeline.update_rule, params)

    def init_inner(self, params: Params) -> PipelineState:
        return init_tree(self.pipeline, params)

    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: PipelineState,
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], PipelineState]:
        num_steps, loss = context.num_steps_array(), context.loss_array()
        return update_tree(self.pipeline, mean, state, params, deltas=deltas, num_steps=num_steps, loss=loss)
