import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import _tree
from ..accumulators import AbstractAccumulator, TensorView
from ..features import AbstractFeature, Channels
from ..heads import AbstractHead
from ..parametrization import UpdateRule
from ..steps import AbstractStepRule, AbstractTransform
from . import _blocks

# The sum of 1e20 squares stays finite. Where the sum of fourth powers does not, RMS-normalized second moments are 0.
_LARGEST = 1e9


class Pipeline(eqx.Module):
    r"""Maps one tensor's gradient to its update: accumulators, features, a head and a step rule.

    For a tensor $p$ with gradient $g$ and accumulator states $a$, at step $t$:

    $$a' = \mathrm{update}(p, g, t, a), \qquad x = \mathrm{features}(p, g, \mathrm{read}(a'), t), \qquad
      \Delta p = \mathrm{step}(\mathrm{head}(x)).$$

    Arithmetic and state are float32 for any parameter dtype. Finite gradients beyond $\pm 10^9$ count as $\pm 10^9$,
    lest their squares, or sums of these over the tensor, overflow; gradients that are not finite stay as they are.
    Scalars are treated as tensors of shape `[1]`; empty tensors get an empty update. Large tensors are evaluated in
    blocks if the features are pointwise. Learners apply one pipeline to every tensor of a
    model: [`lo_components.optimizers.LearnedOptimizer`][] to gradients,
    [`lo_components.aggregators.LearnedAggregator`][] to workers' deltas.

    ??? cite "Source"
        The decomposition common to Metz et al. (arXiv 2009.11243), small_fc_lopt and muLO (arXiv 2406.00153).
    """

    accumulators: tuple[AbstractAccumulator, ...]
    features: AbstractFeature
    head: AbstractHead
    step_rule: AbstractStepRule
    transforms: tuple[AbstractTransform, ...] = ()

    def __init__(
        self,
        accumulators: tuple[AbstractAccumulator, ...],
        features: AbstractFeature,
        head: AbstractHead,
        step_rule: AbstractStepRule,
        transforms: tuple[AbstractTransform, ...] = (),
    ):
        """**Arguments:**

        - `accumulators`: the tensor's state; each must produce a different statistic.
        - `features`: the head's inputs; they may require only statistics that an accumulator produces.
        - `head`: maps `features.size` channels to `step_rule.in_size` outputs.
        - `step_rule`: turns the head's outputs into the update.
        - `transforms`: change the update of the whole tensor, one after the other.

        Raises `ValueError` if parts do not fit together.
        """
        self.accumulators = tuple(accumulators)
        self.features = features
        self.head = head
        self.step_rule = step_rule
        self.transforms = tuple(transforms)

    def __check_init__(self):
        produced = [a.produces for a in self.accumulators]
        twice = {kind.__name__ for kind in produced if produced.count(kind) > 1}
        if twice:
            raise ValueError(f"Two accumulators produce the same statistic: {', '.join(sorted(twice))}.")
        required = self.features.requires | self.step_rule.requires
        missing = sorted(kind.__name__ for kind in required - set(produced))
        if missing:
            raise ValueError(
                f"The features or the step rule require {', '.join(missing)}, which no accumulator produces; add one "
                f"that does (given: {', '.join(kind.__name__ for kind in produced) or 'none'})."
            )
        if self.head.in_size != self.features.size:
            raise ValueError(
                f"The features yield {self.features.size} channels, but the head takes {self.head.in_size}."
            )
        if self.head.out_size != self.step_rule.in_size:
            raise ValueError(
                f"The head returns {self.head.out_size} channels, but the step rule takes {self.step_rule.in_size}."
            )

    def update_rule(self, param: Float[Array | np.ndarray, "*shape"]) -> UpdateRule:
        """The rule by which the size of the update depends on the gradient.

        **Arguments:**

        - `param`: the tensor; only its number of axes matters.
        """
        rule = self.step_rule.update_rule
        for transform in self.transforms:
            rule = transform.update_rule(rule, np.ndim(param))
        return rule

    def init(self, param: Float[Array | np.ndarray, "*shape"]) -> tuple:
        """The accumulators' states before the first step.

        **Arguments:**

        - `param`: the tensor.
        """
        return tuple(a.init(_as_tensor(param)) for a in self.accumulators)

    def update(
        self,
        grad: Float[Array | np.ndarray, "*shape"],
        states: tuple,
        param: Float[Array | np.ndarray, "*shape"],
        *,
        deltas: Float[Array, "workers *shape"] | None = None,
        step: Int[Array, ""],
        num_steps: Int[Array, ""] | None = None,
        loss: Float[Array, ""] | None = None,
        controls: Float[Array, " k"] | None = None,
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "*shape"], tuple]:
        """One step of one tensor.

        **Arguments:**

        - `grad`: its gradient; for aggregators, the mean of the workers' deltas.
        - `states`: the accumulators' states, from `init` or the previous `update`.
        - `param`: the tensor before the step.
        - `deltas`: for aggregators, each worker's delta.
        - `step`: the number of steps taken before this one.
        - `num_steps`, `loss`: the length of training and the current loss, if known.
        - `controls`: what a controller says about the tensor, if there is one.
        - `length`: if the tensor is a vector that is padded with zeros, its length without them.

        **Returns:** the update to add to `param`, in its dtype, and the accumulators' next states.
        """
        param = jnp.asarray(param)
        tensor = _as_tensor(param)
        if tensor.size == 0:
            return param, states
        view = TensorView(
            param=tensor,
            grad=_as_tensor(_bounded(grad)),
            stats=(),
            step=step,
            num_steps=num_steps,
            loss=loss,
            deltas=None if deltas is None else _workers_as_tensor(_bounded(deltas)),
            controls=controls,
            size=length,
            counted=_counted(tensor, length),
        )
        states = tuple(a.update(view, s) for a, s in zip(self.accumulators, states, strict=True))
        stats = tuple(a.read(s) for a, s in zip(self.accumulators, states, strict=True))
        view = dataclasses.replace(view, stats=stats)
        update = self._evaluated(view)
        for transform in self.transforms:
            update = transform(update, view)
        return update.reshape(param.shape).astype(param.dtype), states

    def view(
        self,
        grad: Float[Array | np.ndarray, "*shape"],
        states: tuple,
        param: Float[Array | np.ndarray, "*shape"],
        *,
        step: Int[Array, ""],
        controls: Float[Array, " k"] | None = None,
        length: Int[Array, ""] | None = None,
    ) -> TensorView:
        """The view of a tensor whose accumulators have the given states.

        **Arguments:**

        - `grad`, `states`, `param`, `step`, `controls`, `length`: as in `update`.
        """
        tensor, stats = _as_tensor(param), tuple(a.read(s) for a, s in zip(self.accumulators, states, strict=True))
        return TensorView(
            param=tensor,
            grad=_as_tensor(_bounded(grad)),
            stats=stats,
            step=step,
            controls=controls,
            size=length,
            counted=_counted(tensor, length),
        )

    def _evaluated(self, view: TensorView) -> Float[Array, "*shape"]:
        if view.param.size < _tree.BLOCKED_FROM or not self.features.pointwise:
            return self._pointwise(self._channels(view), view)
        # Chosen when the program is lowered.
        return jax.lax.platform_dependent(
            view,
            cpu=lambda view: self._in_blocks(view, _blocks.SIZE_ON_CPUS, _blocks.PARTS_ON_CPUS),
            default=lambda view: self._in_blocks(view, _blocks.SIZE_ELSEWHERE, _blocks.PARTS_ELSEWHERE),
        )

    def _channels(self, view: TensorView) -> tuple[Channels, ...]:
        channels = self.features(view)
        if view.counted is None:
            return channels
        # Features need not know of padding.
        normalized = [c.values for c in channels if c.mean_square is not None]
        means = iter(view.mean_squares(normalized) if normalized else [])
        return _blocks.with_mean_squares(channels, [None if c.mean_square is None else next(means) for c in channels])

    def _in_blocks(self, view: TensorView, block_size: int, most_parts: int) -> Float[Array, "*shape"]:
        """Two passes over blocks: first the mean squares, then everything else."""
        blocks = _blocks.Blocks(view.param.shape, block_size, most_parts)
        if len(blocks) == 1:
            return self._pointwise(self.features(view), view)
        means = _blocks.mean_squares(self.features, view, blocks)

        def block(part: TensorView) -> Float[Array, "*block"]:
            return self._pointwise(_blocks.with_mean_squares(self.features(part), means), part)

        return (
            _blocks.map_blocks(block, view, blocks) if self.head.blockwise and self.step_rule.pointwise else block(view)
        )

    def _pointwise(self, channels: tuple[Channels, ...], view: TensorView) -> Float[Array, "*shape"]:
        out = self.head(channels, view)
        out = jnp.broadcast_to(out, (out.shape[0], *view.param.shape))
        return self.step_rule(out, view)


def _as_tensor(x) -> Float[Array, "*shape"]:
    """`x` in float32, with at least one axis."""
    x = jnp.asarray(x).astype(jnp.float32)
    return x.reshape(1) if x.ndim == 0 else x


def _counted(tensor: Float[Array, "*shape"], length: Int[Array, ""] | None) -> Bool[Array, "*shape"] | None:
    """Which elements of a vector are not padding."""
    return None if length is None else jnp.arange(tensor.size) < length


def _workers_as_tensor(x) -> Float[Array, "workers *shape"]:
    x = jnp.asarray(x).astype(jnp.float32)
    return x[:, None] if x.ndim == 1 else x


def _bounded(x: Float[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """Finite elements clipped at `_LARGEST`, before a conversion of float64 could make them infinite."""
    x = jnp.asarray(x)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -_LARGEST, _LARGEST), x)
