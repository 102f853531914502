"""Antithetic pairs: a task trained twice on the same data, by two learners that differ in theta."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..unroll import Episode, InnerState, TruncatedUnroll

PairTheta = PyTree[Float[Array, "2 ..."]]


class PairOutput(eqx.Module):
    """The result of one truncation window, or of one episode, of a pair.

    **Arguments:**

    - `meta_losses`: the contribution of each member.
    - `difference`: the difference of the two contributions, computed with less rounding error.
    - `loss`, `clipped`: means over members and steps.
    - `finite`: whether each member stayed finite.
    - `windows`: how many windows each member was trained for.
    - `state`: the state for the next window.
    """

    meta_losses: Float[Array, "2"]
    difference: Float[Array, ""]
    loss: Float[Array, ""]
    clipped: Float[Array, ""]
    finite: Bool[Array, "2"]
    windows: Int[Array, ""]
    state: InnerState


def perturbed(theta: PyTree[Float[Array, "..."]], noise: PyTree[Float[Array, "..."]], antithetic: bool) -> PairTheta:
    """$\\theta + \\epsilon$, and $\\theta - \\epsilon$ or $\\theta$, stacked on a new leading axis."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e if antithetic else t]), theta, noise)


def twins(state: InnerState) -> InnerState:
    """The state of a pair whose members are equal."""
    return InnerState(state.episode, jax.tree.map(lambda x: jnp.stack([x, x]), state.train))


def unroll_pair(
    unroll: TruncatedUnroll, theta: PairTheta, rest: Any, state: InnerState, *, key: PRNGKeyArray
) -> PairOutput:
    """One window of both members, with the same episode and keys: task, initial parameters and batches are the same."""

    def member(theta, train):
        return unroll(eqx.combine(theta, rest), InnerState(state.episode, train), key=key)

    out = jax.vmap(member)(theta, state.train)
    episode = _joint(out.state.episode)

    def contribution(losses, previous_loss):
        return unroll.contribution(losses, previous_loss, episode)

    meta_losses = jax.vmap(contribution)(out.losses, out.previous_loss)
    return PairOutput(
        meta_losses,
        _difference(contribution, meta_losses, (out.losses, out.previous_loss)),
        jnp.mean(out.losses),
        jnp.mean(out.clipped),
        out.finite,
        jnp.ones((), jnp.int32),
        InnerState(episode, out.state.train),
    )


def unroll_episode(
    unroll: TruncatedUnroll, theta: PairTheta, rest: Any, *, windows_so_far: Int[Array, ""], key: PRNGKeyArray
) -> PairOutput:
    """One whole episode of both members. Numbers are means over its windows."""
    new_key, key = jax.random.split(key)

    def window(carry):
        count, sums, finite, state = carry
        out = unroll_pair(unroll, theta, rest, state, key=jax.random.fold_in(key, count))
        numbers = (out.meta_losses, out.difference, out.loss, out.clipped)
        return count + 1, jax.tree.map(jnp.add, sums, numbers), finite & out.finite, out.state

    # Mark the episode as done, so that the first window begins a new one with the learner of each member.
    member = eqx.combine(jax.tree.map(lambda t: t[0], theta), rest)
    state = twins(unroll.new_episode(member, windows_so_far=windows_so_far, key=new_key))
    state = eqx.tree_at(lambda s: s.episode.done, state, jnp.asarray(True))
    zero = jnp.zeros((), jnp.float32)
    begin = jnp.zeros((), jnp.int32), (jnp.zeros(2, jnp.float32), zero, zero, zero), jnp.ones(2, bool), state
    count, sums, finite, state = jax.lax.while_loop(
        lambda carry: (carry[0] == 0) | ~carry[-1].episode.done, window, begin
    )
    meta_losses, difference, loss, clipped = (x / count.astype(jnp.float32) for x in sums)
    return PairOutput(meta_losses, difference, loss, clipped, finite, count, state)


def _joint(episodes: Episode) -> Episode:
    """The episode of both members. It ends if either member becomes non-finite."""
    episode = jax.tree.map(lambda x: x[0], episodes)
    return eqx.tree_at(lambda e: e.done, episode, jnp.any(episodes.done))


def _difference(
    function: Callable[..., Float[Array, ""]], values: Float[Array, "2"], arguments: tuple[Float[Array, "2 ..."], ...]
) -> Float[Array, ""]:
    """The difference of two values of a function, with less rounding error if its arguments are nearly equal.

    The derivative at the midpoint times the difference of the arguments has no cancellation. It is exact for linear
    functions, and accurate for smooth ones if the arguments are close, so it is used if it agrees with the plain
    difference up to the rounding error of a sum. Equal arguments have a difference of exactly 0.
    """
    midpoint = [0.5 * (x[0] + x[1]) for x in arguments]
    _, derivative = jax.jvp(function, midpoint, [x[0] - x[1] for x in arguments])
    plain = values[0] - values[1]
    terms = max(x[0].size for x in arguments)
    rounding = 2.0 * terms**0.5 * jnp.finfo(jnp.float32).eps * jnp.sum(jnp.abs(values))
    agree = (jnp.abs(plain - derivative) <= rounding) & jnp.isfinite(rounding)
    return jnp.where(agree, derivative, plain)
