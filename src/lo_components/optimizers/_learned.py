import jax
from jaxtyping import PyTree

from .._tree import check_state
from .._types import Params, typechecked
from ..parametrization import UpdateRule
from ..pipeline import Pipeline, PipelineState, init_tree, update_tree
from ._base import AbstractOptimizer, StepContext, checked_update


class LearnedOptimizer(AbstractOptimizer[PipelineState]):
    """A per-parameter learned optimizer: one pipeline, applied to each tensor independently.

    **Arguments:**

    - `pipeline`: maps a tensor's gradient to its update.
    """

    pipeline: Pipeline

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return jax.tree.map(self.pipeline.update_rule, params)

    @typechecked
    def init(self, params: Params) -> PipelineState:
        """The state before the first step, with accumulators at zero.

        **Arguments:**

        - `params`: a pytree of floating-point arrays.
        """
        return init_tree(self.pipeline, params)

    @checked_update
    def update(
        self, grads: Params, state: PipelineState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, PipelineState]:
        """One step.

        **Arguments:**

        - `grads`: the gradients, with the structure and shapes of `params`.
        - `state`: from `init` or the previous `update`.
        - `params`: the parameters before the step.
        - `context`: the loss and the length of training, for features that use them.

        **Returns:** the update to add to `params`, in their dtypes, and the next state.

        Raises `ValueError` if `grads` or `state` does not match `params`.
        """
        check_state(state, self.init, params)
        return update_tree(
            self.pipeline, grads, state, params, num_steps=context.num_steps_array(), loss=context.loss_array()
        )
