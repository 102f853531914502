from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._tree import check_state
from .._types import Params, typechecked
from ..accumulators import TensorView
from ..controllers import NormSummary
from ..features import Gradient
from ..heads import AbstractHead, IdentityHead, LeadingOutputs
from ..parametrization import UpdateRule
from ..pipeline import Pipeline, PipelineState, init_tree, summarize_tree, update_tree
from ..schedules import LSTM, Linear, LSTMState, Progress
from ..steps import Direction
from ._base import AbstractOptimizer, StepContext, checked_update
from ._controlled import for_all_tensors, nonempty

_AXES = 4


class RNNMLPState(NamedTuple):
    """State of an [`lo_components.optimizers.RNNMLP`][] optimizer.

    **Arguments:**

    - `step`: the number of updates made.
    - `accumulators`: as in [`lo_components.pipeline.PipelineState`][].
    - `lstm`: the recurrent network, one row for each tensor.
    - `from_mlp`: what each tensor's MLP said in the last step.
    - `from_lstm`: what the recurrent network said in the last step, for all tensors.
    - `loss_mean`, `loss_variance`: moving averages, without bias correction.
    """

    step: Int[Array, ""]
    accumulators: tuple[Any, ...]
    lstm: LSTMState
    from_mlp: Float[Array, "tensors m"]
    from_lstm: Float[Array, " l"]
    loss_mean: Float[Array, ""]
    loss_variance: Float[Array, ""]


class RNNMLP(AbstractOptimizer[RNNMLPState]):
    """A hierarchical optimizer: a recurrent network with one row for each tensor, and an MLP for each parameter.

    They exchange messages. The recurrent network sees a summary of each tensor, the loss, and the last messages of both
    networks. The MLP sees the message of its tensor as channels, and the mean over the tensor of its further outputs is
    the message to the next step. Needs the loss.

    **Arguments:**

    - `pipeline`: maps a tensor's gradient to its update, with a [`lo_components.heads.LeadingOutputs`][] head, whose
        other outputs are messages.
    - `lstm`: the recurrent network.
    - `to_mlp`, `to_lstm`: its messages to the MLP of its tensor and to all rows of the next step.
    - `start`: the first state of the recurrent network.
    - `from_mlp`, `from_lstm`: the first messages.

    Raises `ValueError` if the pipeline has another head. `update` raises it without a loss.

    ??? cite "Source"
        Metz et al., *Tasks, stability, architecture, and compute* (arXiv 2009.11243).
    """

    pipeline: Pipeline
    lstm: LSTM
    to_mlp: Linear
    to_lstm: Linear
    start: LSTMState
    from_mlp: Float[Array, " m"]
    from_lstm: Float[Array, " l"]

    def __check_init__(self):
        if not isinstance(self.pipeline.head, LeadingOutputs):
            raise ValueError("The head of `pipeline` must be `LeadingOutputs`, whose other outputs are messages.")

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return jax.tree.map(self.pipeline.update_rule, params)

    @typechecked
    def init(self, params: Params) -> RNNMLPState:
        step, accumulators = init_tree(self.pipeline, params)
        count, zero = len(nonempty(params)), jnp.zeros((), jnp.float32)
        from_mlp = jnp.broadcast_to(self.from_mlp, (count, *self.from_mlp.shape))
        lstm = self.start.repeated(count)
        return RNNMLPState(step, accumulators, lstm, from_mlp, self.from_lstm, zero, zero)

    @checked_update
    def update(
        self, grads: Params, state: RNNMLPState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, RNNMLPState]:
        check_state(state, self.init, params)
        rows = nonempty(params)
        if not rows.size:
            return params, state._replace(step=state.step + 1)
        loss = Progress(state.step, context.loss_array()).required("loss")
        mean = 0.9 * state.loss_mean + 0.1 * loss
        variance = 0.9 * state.loss_variance + 0.1 * jnp.square(mean - loss)
        correction = 1.0 / (1.0 - 0.9 ** (state.step.astype(jnp.float32) + 1.0) + 1e-8)

        def normalized(x: Float[Array, ""]) -> Float[Array, ""]:
            scale = jax.lax.rsqrt(correction * variance + 1e-8)
            return jnp.clip((x - correction * mean) * scale, -5.0, 5.0)

        before = PipelineState(state.step, state.accumulators)
        # The networks see statistics that include this step's gradient.
        accumulate = Pipeline(self.pipeline.accumulators, Gradient(), IdentityHead(1), Direction(0.0))
        after = update_tree(accumulate, grads, before, params)[1]._replace(step=state.step)
        summaries = summarize_tree(self.pipeline, NormSummary(), grads, after, params)[rows]
        shapes = _shapes(params)[rows]
        # No validation loss is known, so its mean counts as 0.
        losses = jnp.stack([normalized(loss), normalized(jnp.zeros_like(loss))])
        x = self._inputs(state, summaries, shapes, losses)
        lstm = self.lstm(x, state.lstm)
        common = jnp.full((x.shape[0], 1), np.log(x.shape[0]) - 1.0, jnp.float32)
        controls = jnp.concatenate([common, summaries[:, -1:], shapes[:, -1:], self.to_mlp(lstm.hidden)], axis=1)
        controls = for_all_tensors(controls, rows, params)
        messages = summarize_tree(self.pipeline, self._message, grads, after, params, controls)[rows]
        updates, end = update_tree(self.pipeline, grads, before, params, controls=controls)
        to_lstm = jnp.mean(self.to_lstm(lstm.hidden), axis=0)
        return updates, RNNMLPState(*end, lstm, messages, to_lstm, mean, variance)

    def _inputs(
        self,
        state: RNNMLPState,
        summaries: Float[Array, "tensors s"],
        shapes: Float[Array, "tensors 6"],
        losses: Float[Array, " 2"],
    ) -> Float[Array, "tensors inputs"]:
        """The inputs of the recurrent network, in the order of their names in the original."""
        rows = len(summaries)
        g_norm, moments, p_norm, variances, _ = jnp.split(summaries, [1, 7, 8, 11], axis=1)
        everywhere = [jnp.broadcast_to(x, (rows, *x.shape)) for x in (state.from_lstm, losses)]
        return jnp.concatenate(
            [
                everywhere[0],
                state.from_mlp,
                g_norm,
                shapes[:, :1],
                moments,
                p_norm,
                shapes[:, 1:-1],
                everywhere[1],
                variances,
            ],
            axis=1,
        )

    def _message(self, view: TensorView) -> Float[Array, " m"]:
        head: AbstractHead = self.pipeline.head.head  # type: ignore[reportAttributeAccessIssue]
        return view.means(head(self.pipeline.features(view), view)[self.pipeline.head.out_size :])


def _shapes(params: Params) -> Float[Array, "tensors 6"]:
    """For each tensor: whether it is a scalar, the logarithms of its first four sizes, and that of all elements."""
    rows = []
    for shape in map(jnp.shape, jax.tree.leaves(params)):
        sizes = [*shape, *[1] * _AXES][:_AXES]
        sizes = np.log(np.maximum(np.asarray([*sizes, np.prod(shape)], np.float64), 1.0))
        rows.append([-1.0 if shape else 1.0, *(sizes[:-1] - 1.0), sizes[-1]])
    return jnp.asarray(rows, jnp.float32)
