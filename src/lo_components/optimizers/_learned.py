import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .. import _tree
from .._tree import path_name
from .._types import Params, typechecked
from ..accumulators import AbstractAccumulator
from ..features import AbstractFeature, Channels, TensorView
from ..heads import AbstractHead
from ..steps import AbstractStepRule
from ._base import AbstractOptimizer, StepContext, checked_update

# Tensors of `BLOCKED_FROM` elements and more are reduced in blocks of at least this many, and evaluated in them if
# the head is blockwise, so that what lies between accumulators and update stays in the cache (benchmarks/update.py).
_BLOCK_SIZE = 2**15


class LearnedOptimizerState(eqx.Module):
    """State of a [`lo_components.optimizers.LearnedOptimizer`][].

    `step` counts the updates made; `accumulators` has the structure of the parameters, with a tuple of accumulator
    states in place of each tensor.
    """

    step: Int[Array, ""]
    accumulators: PyTree


class LearnedOptimizer(AbstractOptimizer[LearnedOptimizerState]):
    r"""A per-parameter learned optimizer: accumulators, features, a head and a step rule, applied to each tensor alone.

    For each tensor with gradient $g$, parameter $p$ and accumulator states $a$:

    $$a' = \mathrm{update}(g, a), \qquad x = \mathrm{features}(p, g, \mathrm{read}(a'), t), \qquad
      \Delta p = \mathrm{step}(\mathrm{head}(x)).$$

    Arithmetic and state are float32 for any parameter dtype. Scalars are treated as tensors of shape `[1]`; empty
    tensors get an empty update. The result for one tensor does not depend on the others.

    ??? cite "Source"
        The decomposition common to Metz et al. (arXiv 2009.11243), small_fc_lopt and muLO (arXiv 2406.00153).
    """

    accumulators: tuple[AbstractAccumulator, ...]
    features: AbstractFeature
    head: AbstractHead
    step_rule: AbstractStepRule

    def __init__(
        self,
        accumulators: tuple[AbstractAccumulator, ...],
        features: AbstractFeature,
        head: AbstractHead,
        step_rule: AbstractStepRule,
    ):
        """**Arguments:**

        - `accumulators`: what to remember about each tensor; each must produce a different statistic.
        - `features`: what the head sees; may ask only for statistics that an accumulator produces.
        - `head`: takes `features.size` channels, returns `step_rule.in_size`.
        - `step_rule`: turns the head's outputs into the update.

        Raises `ValueError` where two parts do not fit together.
        """
        self.accumulators = tuple(accumulators)
        self.features = features
        self.head = head
        self.step_rule = step_rule

    def __check_init__(self):
        produced = [a.produces for a in self.accumulators]
        twice = {kind.__name__ for kind in produced if produced.count(kind) > 1}
        if twice:
            raise ValueError(f"Two accumulators produce the same statistic: {', '.join(sorted(twice))}.")
        missing = sorted(kind.__name__ for kind in self.features.requires - set(produced))
        if missing:
            raise ValueError(
                f"The features require {', '.join(missing)}, which no accumulator produces; add one that does "
                f"(given: {', '.join(kind.__name__ for kind in produced) or 'none'})."
            )
        if self.head.in_size != self.features.size:
            raise ValueError(
                f"The features yield {self.features.size} channels, but the head takes {self.head.in_size}."
            )
        if self.head.out_size != self.step_rule.in_size:
            raise ValueError(
                f"The head returns {self.head.out_size} channels, but the step rule takes {self.step_rule.in_size}."
            )

    @typechecked
    def init(self, params: Params) -> LearnedOptimizerState:
        """Zeroed accumulators.

        **Arguments:**

        - `params`: a pytree of floating-point arrays.
        """
        accumulators = jax.tree.map(self._init_leaf, params)
        return LearnedOptimizerState(jnp.zeros((), jnp.int32), accumulators)

    @checked_update
    def update(
        self, grads: Params, state: LearnedOptimizerState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, LearnedOptimizerState]:
        """One step.

        **Arguments:**

        - `grads`: the gradients, with the structure and shapes of `params`.
        - `state`: from `init` or the previous `update`.
        - `params`: the parameters before the step.
        - `context`: the loss and the length of training, where features use them.

        **Returns:** the update to add to `params`, in their dtype, and the next state.
        """
        params_flat, treedef = jax.tree.flatten(params)
        grads_flat = treedef.flatten_up_to(grads)
        states_flat = self._matching_states(state, params, treedef)
        deltas_flat = [None] * len(grads_flat) if context.deltas is None else treedef.flatten_up_to(context.deltas)
        updates, states = [], []
        for param, grad, leaf_state, deltas in zip(params_flat, grads_flat, states_flat, deltas_flat, strict=True):
            update, leaf_state = self._update_leaf(param, grad, leaf_state, deltas, state.step, context)
            updates.append(update)
            states.append(leaf_state)
        return treedef.unflatten(updates), LearnedOptimizerState(state.step + 1, treedef.unflatten(states))

    def _init_leaf(self, param) -> tuple:
        return tuple(a.init(_as_tensor(param)) for a in self.accumulators)

    def _matching_states(self, state: LearnedOptimizerState, params: Params, treedef) -> list[tuple]:
        try:
            states = treedef.flatten_up_to(state.accumulators)
        except ValueError as error:
            raise ValueError(f"`state` does not belong to `params`: their structures differ ({error}).") from None
        for (path, param), leaf_state in zip(jax.tree_util.tree_leaves_with_path(params), states, strict=True):
            expected = eqx.filter_eval_shape(self._init_leaf, param)
            if _shapes(leaf_state) != _shapes(expected):
                raise ValueError(
                    f"`state` does not belong to `params`: at `{path_name(path)}`, of shape {param.shape}, it holds "
                    f"arrays of shapes {_shapes(leaf_state)}, not {_shapes(expected)}."
                )
        return states

    def _update_leaf(self, param, grad, states: tuple, deltas, step: Int[Array, ""], context: StepContext):
        param = jnp.asarray(param)
        tensor = _as_tensor(param)
        if tensor.size == 0:
            return param, states
        grad = _as_tensor(grad)
        states = tuple(a.update(grad, s) for a, s in zip(self.accumulators, states, strict=True))
        view = TensorView(
            param=tensor,
            grad=grad,
            stats=tuple(a.read(s) for a, s in zip(self.accumulators, states, strict=True)),
            step=step,
            num_steps=context.num_steps_array(),
            loss=context.loss_array(),
            deltas=None if deltas is None else _workers_as_tensor(deltas),
        )
        return self._step(view).reshape(param.shape).astype(param.dtype), states

    def _step(self, view: TensorView) -> Float[Array, "*shape"]:
        shape, rows = view.param.shape, _rows_per_block(view.param.shape)
        if rows == shape[0]:
            return self._pointwise(self.features(view), view)
        # Two passes: the sums of the channels' squares, over blocks of rows that stay in the cache, then the rest.
        sums = self._square_sums(view, rows)
        if not (self.head.blockwise and self.step_rule.pointwise):
            return self._pointwise(self._channels(view, sums), view)

        def evaluated(part: TensorView) -> Float[Array, "rows ..."]:
            # Without the barrier XLA fuses the arithmetic into the write, element by element.
            return jax.lax.optimization_barrier(self._pointwise(self._channels(part, sums), part))

        def block(i: Int[Array, ""], update: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return jax.lax.dynamic_update_slice_in_dim(update, evaluated(view.rows(i * rows, rows)), i * rows, 0)

        num_blocks, rest = divmod(shape[0], rows)
        update = jax.lax.fori_loop(0, num_blocks, block, jnp.zeros(shape, jnp.float32))
        if not rest:
            return update
        last = evaluated(view.rows(jnp.asarray(num_blocks * rows), rest))
        return update.at[num_blocks * rows :].set(last)

    def _square_sums(self, view: TensorView, rows: int) -> list[tuple[Float[Array, " c"] | None, int]]:
        """`square_sum` and `count` of the channels of the whole tensor, a block of rows at a time.

        Channels that are constant along the rows are counted in every block, in the sum as in the count.
        """
        num_blocks, rest = divmod(view.param.shape[0], rows)
        like = jax.eval_shape(self.features, view.rows(jnp.asarray(0), rows))
        counts = [num_blocks * c.count for c in like]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), [c.square_sum for c in like])
        if not jax.tree.leaves(sums):
            return list(zip(sums, counts, strict=True))

        def add(sums, part: tuple[Channels, ...]):
            return jax.tree.map(jnp.add, sums, [c.square_sum for c in part])

        def accumulate(i: Int[Array, ""], sums):
            return add(sums, self.features(view.rows(i * rows, rows)))

        sums = jax.lax.fori_loop(0, num_blocks, accumulate, sums)
        if rest:
            last = self.features(view.rows(jnp.asarray(num_blocks * rows), rest))
            sums, counts = add(sums, last), [n + c.count for n, c in zip(counts, last, strict=True)]
        return list(zip(sums, counts, strict=True))

    def _channels(self, view: TensorView, sums: list[tuple[Float[Array, " c"] | None, int]]) -> tuple[Channels, ...]:
        """The channels of some rows, divided by root mean squares over the whole tensor."""
        return tuple(Channels(c.values, *s, c.eps) for c, s in zip(self.features(view), sums, strict=True))

    def _pointwise(self, channels: tuple[Channels, ...], view: TensorView) -> Float[Array, "*shape"]:
        out = self.head(channels)
        out = jnp.broadcast_to(out, (out.shape[0], *view.param.shape))
        return self.step_rule(out, view)


def _rows_per_block(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor to evaluate at a time; all of them if it is small."""
    size = math.prod(shape)
    if size < _tree.BLOCKED_FROM:
        return shape[0]
    return min(shape[0], -(-_BLOCK_SIZE * shape[0] // size))


def _as_tensor(x) -> Float[Array, "*shape"]:
    """`x` in float32, of rank 1 or more."""
    x = jnp.asarray(x).astype(jnp.float32)
    return x.reshape(1) if x.ndim == 0 else x


def _workers_as_tensor(x) -> Float[Array, "workers *shape"]:
    x = jnp.asarray(x).astype(jnp.float32)
    return x[:, None] if x.ndim == 1 else x


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [x.shape for x in jax.tree.leaves(tree)]
