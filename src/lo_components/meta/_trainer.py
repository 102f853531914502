import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _tree
from .._learner import Learner, partition
from ..estimators import AbstractEstimator
from ._arguments import as_transformation, checked

MetaOptimizer = optax.GradientTransformation | optax.MultiSteps


class MetaState(eqx.Module):
    """The state of meta-training between two meta-steps, which is what a checkpoint holds.

    **Arguments:**

    - `learner`: the optimizer (or aggregator) being meta-trained.
    - `optimizer_state`: the state of the meta-optimizer.
    - `estimator_state`: the state of every particle.
    - `step`: meta-steps taken.
    - `key`: the key of the run; meta-step `t` uses `fold_in(key, t)`.
    """

    learner: Learner
    optimizer_state: optax.OptState
    estimator_state: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray


class MetaMetrics(eqx.Module):
    """The metrics of one meta-step.

    **Arguments:**

    - `loss`: the mean per-step loss over particles and steps.
    - `meta_loss`: the mean contribution of the window to the meta-loss, which selects the best checkpoint.
    - `finite`: the fraction of particles that stayed finite.
    - `grad_norm`: the global norm of the meta-gradient, before clipping.
    - `usable`: the fraction of pairs (or particles) that contribute to the meta-gradient.
    - `inner_steps`: the inner steps of all particles in this meta-step.
    - `skipped`: 1 if the meta-step was skipped, because no pair was usable or the gradient was not finite.
    - `diagnostics`: those of the estimator; see [`lo_components.estimators.Estimate`][].
    """

    loss: Float[Array, ""]
    meta_loss: Float[Array, ""]
    finite: Float[Array, ""]
    grad_norm: Float[Array, ""]
    usable: Float[Array, ""]
    inner_steps: Int[Array, ""]
    skipped: Float[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]


@functools.cache
def meta_optimizer(
    num_steps: int,
    *,
    peak: float = 3e-3,
    end: float = 1e-3,
    warmup: int = 100,
    max_norm: float = 1.0,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """The papers' meta-optimizer: AdamW with linear warm-up and cosine decay, on *gradients* clipped by global norm.

    Its state holds the `learning_rate`, which is therefore a column of the log.

    **Arguments:**

    - `num_steps`: the total number of meta-steps, over which the learning rate decays.
    - `peak`, `end`: the highest and the last learning rate.
    - `warmup`: meta-steps from a learning rate near zero to `peak`; at most half of `num_steps`.
    - `max_norm`: the largest global norm of the gradient.
    - `weight_decay`: decoupled weight decay, multiplied by the learning rate.

    ??? cite "Source"
        muLO (arXiv 2406.00153), appendix. The research code clips the update of AdamW instead, which never triggers.
    """
    warmup = min(warmup, num_steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(3e-10, peak, warmup, max(num_steps, warmup + 1), end)

    def rate(count):
        # The state holds the rate from the beginning, and optax's schedules mix integers and floats.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return _as_one_vector(
        optax.chain(
            optax.clip_by_global_norm(max_norm),
            optax.scale_by_adam(),
            optax.add_decayed_weights(weight_decay),
            optax.inject_hyperparams(_descend, hyperparam_dtype=jnp.dtype("float32"))(rate),
        )
    )


def _as_one_vector(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Theta is many small arrays, and one vector of all compiles and runs faster."""
    flat = optax.flatten(inner)

    # Where dtypes differ, the vector has the widest one.
    def init(params):
        with jax.numpy_dtype_promotion("standard"):
            return flat.init(params)

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            found, state = flat.update(updates, state, params, **extra)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), found, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _descend(learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    def update(updates, params):
        return jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates)

    return optax.stateless(update)


@checked
def init_meta_state(
    learner: Learner, estimator: AbstractEstimator, optimizer: MetaOptimizer, *, key: PRNGKeyArray
) -> MetaState:
    """The state before the first meta-step.

    **Arguments:**

    - `learner`: the initial learner.
    - `estimator`: the estimator of the meta-gradient.
    - `optimizer`: the meta-optimizer, an optax transformation or `optax.MultiSteps`.
    - `key`: for noise, initial parameters and batches.

    Raises `ValueError` if the learner has no floating-point arrays, or if it is theta alone; `TypeError` if it is no
    learner, for instance a recipe instead of its result, or if `optimizer` is no optax transformation.
    """
    meta_parameters, rest = partition(learner)
    if not jax.tree.leaves(meta_parameters):
        raise ValueError(
            "`learner` has no floating-point arrays, so there is nothing to learn. Python numbers are constants: write "
            "`jnp.asarray(0.1)` for a number to be learned."
        )
    # `jnp.asarray(0.1)` is weakly typed and `apply_updates` is not, so the step would be compiled twice.
    meta_parameters = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), meta_parameters)
    learner = eqx.combine(meta_parameters, rest)
    estimator_key, run_key = jax.random.split(key)
    return MetaState(
        learner,
        as_transformation(optimizer).init(meta_parameters),
        estimator.init(learner, key=estimator_key),
        jnp.zeros((), jnp.int32),
        run_key,
    )


def meta_step(
    state: MetaState, estimator: AbstractEstimator, optimizer: MetaOptimizer
) -> tuple[MetaState, MetaMetrics]:
    """One meta-step, a pure function: estimate the meta-gradient and apply one update of the meta-optimizer.

    If no pair is usable or the estimate is not finite, the learner and the state of the meta-optimizer do not change,
    and `MetaMetrics.skipped` is 1.

    **Arguments:**

    - `state`: from `init_meta_state`, a previous meta-step or a checkpoint.
    - `estimator`: the estimator of the meta-gradient.
    - `optimizer`: the meta-optimizer. It gets the meta-loss of the meta-step as the extra argument `value`, which
        for instance `optax.contrib.reduce_on_plateau` needs.

    **Returns:** the next state and the metrics of the meta-step.
    """
    key = jax.random.fold_in(state.key, state.step)
    estimate, estimator_state = estimator.estimate(state.learner, state.estimator_state, key=key)
    theta, rest = partition(state.learner)
    updates, optimizer_state = as_transformation(optimizer).update(
        estimate.grad, state.optimizer_state, theta, value=estimate.meta_loss
    )
    new_theta = optax.apply_updates(theta, updates)
    grad = _tree.raveled(estimate.grad)
    good = (estimate.usable > 0) & _tree.all_finite((grad, _tree.raveled(new_theta)))
    theta = _tree.where(good, new_theta, theta)
    optimizer_state = _tree.where(good, optimizer_state, state.optimizer_state)
    metrics = MetaMetrics(
        loss=estimate.loss,
        meta_loss=estimate.meta_loss,
        finite=estimate.finite,
        grad_norm=optax.tree.norm(grad),
        usable=estimate.usable,
        inner_steps=estimate.inner_steps,
        skipped=1.0 - good.astype(jnp.float32),
        diagnostics=estimate.diagnostics,
    )
    learner = eqx.combine(theta, rest)
    return MetaState(learner, optimizer_state, estimator_state, state.step + 1, state.key), metrics
