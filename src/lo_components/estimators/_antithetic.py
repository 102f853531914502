"""Antithetic pairs: one particle trained twice, with theta plus and minus the same noise, on the same data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .. import _tree
from ..optimizers import Scaled
from ..unroll import InnerState, TruncatedUnroll
from ._base import Estimate


class PairOutput(eqx.Module):
    """One window of one pair."""

    losses: Float[Array, "2 window"]
    finite: Bool[Array, ""]
    state: InnerState


def perturbed(learner: Any, noise: PyTree) -> Any:
    """The learner with `noise` added and subtracted, stacked on a new leading axis of its inexact arrays."""
    theta, static = eqx.partition(learner, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, noise), static)


def init_pair(unroll: TruncatedUnroll, learner: Any, *, key: PRNGKeyArray) -> InnerState:
    """The state of a pair before its first window: the members' parameters are equal."""
    state = unroll.init(learner, key=key)
    return eqx.tree_at(
        lambda s: (s.params, s.learner_state),
        state,
        jax.tree.map(lambda x: jnp.stack([x, x]), (state.params, state.learner_state)),
    )


def unroll_pair(unroll: TruncatedUnroll, pair: Any, state: InnerState, *, key: PRNGKeyArray) -> PairOutput:
    """One window of both members, which share keys (so initial parameters and batches), step and horizon."""

    def member(learner, params, learner_state):
        return unroll(learner, InnerState(params, learner_state, state.step, state.horizon, state.done), key=key)

    in_axes = eqx.if_array(0)
    out = eqx.filter_vmap(member, in_axes=(jax.tree.map(_array_axis, pair), in_axes, in_axes))(
        pair, state.params, state.learner_state
    )
    # A pair restarts together, also when only one member became non-finite.
    after = eqx.tree_at(
        lambda s: (s.step, s.horizon, s.done),
        out.state,
        (out.state.step[0], out.state.horizon[0], jnp.any(out.state.done)),
    )
    return PairOutput(out.losses, jnp.all(out.finite), after)


def init_pairs(unroll: TruncatedUnroll, learner: Any, num_pairs: int, *, key: PRNGKeyArray) -> InnerState:
    """The state of every pair; pair `i` depends on `key` and `i` alone."""
    refuse_array_scales(learner)
    return jax.vmap(lambda i: init_pair(unroll, learner, key=jax.random.fold_in(key, i)))(jnp.arange(num_pairs))


def unroll_pairs(
    unroll: TruncatedUnroll, learner: Any, inner: InnerState, std: float, *, key: PRNGKeyArray
) -> tuple[PairOutput, PyTree[Float[Array, "pairs ..."]]]:
    """One window of every pair with fresh noise of standard deviation `std`, and that noise.

    Noise and data of pair `i` depend on `key` and `i` alone.
    """
    theta = eqx.filter(learner, eqx.is_inexact_array)

    def one(index, inner: InnerState):
        noise_key, unroll_key = jax.random.split(jax.random.fold_in(key, index))
        noise = jax.tree.map(lambda e: std * e, _tree.normal_like(theta, key=noise_key))
        return unroll_pair(unroll, perturbed(learner, noise), inner, key=unroll_key), noise

    return jax.vmap(one)(jnp.arange(inner.done.shape[0]), inner)


def estimate(out: PairOutput, noise: PyTree[Float[Array, "pairs ..."]], std: float) -> Estimate:
    r"""The gradient $\frac{1}{n}\sum_i \frac{L^+_i - L^-_i}{2\sigma^2}\,\epsilon_i$, over pairs where it is finite."""
    difference = jnp.mean(out.losses[:, 0] - out.losses[:, 1], axis=1)
    usable = jnp.isfinite(difference)
    weight = jnp.where(usable, difference, 0.0) / (2.0 * std**2 * jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32)))
    return Estimate(
        loss=jnp.mean(out.losses),
        grad=jax.tree.map(lambda e: jnp.tensordot(weight, e.astype(jnp.float32), axes=1).astype(e.dtype), noise),
        finite=jnp.mean(out.finite.astype(jnp.float32)),
        diagnostics={"restarts": jnp.mean(out.state.done.astype(jnp.float32))},
    )


def check_settings(num_pairs: int, std: float) -> None:
    """Raise unless there is a pair and noise."""
    if num_pairs < 1 or not std > 0:
        raise ValueError(f"`num_pairs` must be at least 1 and `std` positive, got {num_pairs} and {std}.")


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
