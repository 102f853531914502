"""Pairs: one particle trained twice on the same data, with theta perturbed and with its counterpart."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ..optimizers import Scaled
from ..unroll import InnerState, TruncatedUnroll, UnrollOutput
from ._base import Estimate
from ._shaping import AbstractShaping

Counterpart = Literal["antithetic", "unperturbed"]


class PairOutput(eqx.Module):
    """One window, or one episode, of one pair."""

    meta_losses: Float[Array, "2"]
    difference: Float[Array, ""]
    loss: Float[Array, ""]
    clipped: Float[Array, ""]
    finite: Bool[Array, "2"]
    state: InnerState


def perturbed(learner: Any, noise: PyTree, counterpart: Counterpart) -> Any:
    """The learner with `noise` added, and its counterpart, stacked on a new leading axis of its inexact arrays."""
    theta, static = eqx.partition(learner, eqx.is_inexact_array)
    other = jnp.subtract if counterpart == "antithetic" else lambda t, _: t
    return eqx.combine(jax.tree.map(lambda t, e: jnp.stack([t + e, other(t, e)]), theta, noise), static)


def stacked(state: InnerState) -> InnerState:
    """The state of a pair whose members are alike."""
    where = lambda s: (s.params, s.learner_state, s.last_loss)  # noqa: E731
    return eqx.tree_at(where, state, jax.tree.map(lambda x: jnp.stack([x, x]), where(state)))


def unroll_pair(unroll: TruncatedUnroll, pair: Any, state: InnerState, *, key: PRNGKeyArray) -> PairOutput:
    """One window of both members, which share keys (so tasks, initial parameters and batches), step and horizon."""

    def member(learner, params, learner_state, last_loss) -> UnrollOutput:
        rest = (state.drawn, state.step, state.horizon, state.done)
        return unroll(learner, InnerState(params, learner_state, last_loss, *rest), key=key)

    in_axes = eqx.if_array(0)
    out = eqx.filter_vmap(member, in_axes=(jax.tree.map(_array_axis, pair), in_axes, in_axes, in_axes))(
        pair, state.params, state.learner_state, state.last_loss
    )
    after = out.state
    drawn, step, horizon = jax.tree.map(lambda x: x[0], (after.drawn, after.step, after.horizon))
    # A pair restarts together, also when only one member became non-finite.
    done = jnp.any(after.done)
    after = InnerState(after.params, after.learner_state, after.last_loss, drawn, step, horizon, done)

    def share(losses, last_loss):
        return unroll.share(losses, last_loss, state, after)

    return PairOutput(
        jax.vmap(share)(out.losses, state.last_loss),
        # Not the difference of shares, which rounding would keep from being 0 where members are equal.
        share(out.losses[0] - out.losses[1], state.last_loss[0] - state.last_loss[1]),
        jnp.mean(out.losses),
        jnp.mean(out.clipped),
        out.finite,
        after,
    )


def estimated(
    theta: PyTree[Float[Array, "..."]],
    std: Float[Array, ""],
    out: PairOutput,
    scores: PyTree[Float[Array, "pairs ..."]],
    counterpart: Counterpart,
    shaping: AbstractShaping,
    leave_out_non_finite: bool,
) -> Estimate:
    r"""The gradient $\frac1n \sum_i c\, d_i s_i$ over usable pairs, with $d$ the shaped differences, $s$ the scores and
    $c = \frac12$ for antithetic pairs, where the counterpart moves too.
    """
    usable = jnp.isfinite(out.difference) & (jnp.all(out.finite, axis=1) | (not leave_out_non_finite)) & (std > 0)
    shaped = jnp.where(usable, shaping(out.difference, out.meta_losses, usable), 0.0)
    count = jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32))
    reduced = usable & (jnp.abs(shaped) < jnp.abs(out.difference))
    weights = shaped * (0.5 if counterpart == "antithetic" else 1.0)
    # Divided last, so that particles on many devices wait for one sum, not for two in turn.
    grad = jax.tree.map(lambda s: _weighted_sum(weights, s) / count, scores)
    return Estimate(
        loss=jnp.mean(out.loss),
        grad=jax.tree.map(lambda g, t: g.astype(t.dtype), grad, theta),
        finite=jnp.mean(out.finite, dtype=jnp.float32),
        usable=jnp.mean(usable, dtype=jnp.float32),
        diagnostics={
            "restarts": jnp.mean(out.state.done, dtype=jnp.float32),
            "clipped_losses": jnp.mean(out.clipped),
            "reduced_differences": jnp.sum(reduced, dtype=jnp.float32) / count,
            **signal_and_noise(grad, jnp.square(weights), scores, count),
        },
    )


def _weighted_sum(weights: Float[Array, " n"], vectors: Float[Array, "n ..."]) -> Float[Array, "..."]:
    return jnp.tensordot(weights, vectors, axes=1, precision=jax.lax.Precision.HIGHEST)


def signal_and_noise(
    grad: PyTree[Float[Array, "..."]],
    squared_weights: Float[Array, " n"],
    vectors: PyTree[Float[Array, "n ..."]],
    count: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    r"""The variance of a mean $g$ of $n$ weighted vectors, and what it leaves of $\lVert g\rVert^2$.

    The variance is the trace of the covariance of the mean, estimated from the spread of the vectors.
    """
    norms = sum(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))) for v in jax.tree.leaves(vectors))
    signal = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grad))
    spread = jnp.maximum(jnp.sum(squared_weights * norms) / count - signal, 0.0)
    variance = jnp.where(count > 1, spread / jnp.maximum(count - 1.0, 1.0), jnp.nan)
    return {"variance": variance, "signal": signal - variance}


def refuse_array_scales(learner: Any) -> None:
    """Raise if the learner contains `Scaled` with arrays as scales, which would be perturbed as if meta-learned."""
    wrappers = [x for x in jax.tree.leaves(learner, is_leaf=_is_scaled) if _is_scaled(x)]
    while wrappers:
        wrapper = wrappers.pop()
        if any(eqx.is_array(s) for s in jax.tree.leaves(wrapper.scales)):
            raise ValueError(
                "`learner` contains `Scaled` with arrays as scales; an estimator would perturb them. Use Python floats."
            )
        wrappers += [x for x in jax.tree.leaves(wrapper.optimizer, is_leaf=_is_scaled) if _is_scaled(x)]


def _is_scaled(x: Any) -> bool:
    return isinstance(x, Scaled)


def _array_axis(x: Any) -> int | None:
    return 0 if eqx.is_inexact_array(x) else None
