import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from .._learner import Learner
from ._base import AbstractEstimator, Estimate


class Mixture(AbstractEstimator[tuple]):
    r"""The weighted mean of the estimates of one estimator per task, $\hat g = \sum_k w_k \hat g_k / \sum_k w_k$.

    Meta-trains one learner on several tasks, which may differ in everything: width, data, horizon, even the kind of
    estimator. In every meta-step, each task is trained for one truncation window.

    **Arguments:**

    - `estimators`: at least one.
    - `weights`: $w$, positive; by default all equal.
    - `normalize`: whether to divide each $\hat g_k$ by its global norm, so that no task dominates because of larger
        losses.
    - `names`: the names of the tasks in the diagnostics, as in `"width 128: loss"`; by default their indices.

    Raises `ValueError` if there is no estimator, if there is not one positive weight per estimator, or if there is not
    one distinct name per estimator.

    ??? cite "Source"
        muLO (arXiv 2406.00153): muLO_M is meta-trained on widths 128, 512 and 1024 together.
    """

    estimators: tuple[AbstractEstimator, ...]
    weights: tuple[float, ...] = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        estimators: Sequence[AbstractEstimator],
        *,
        weights: Sequence[float | int] | None = None,
        normalize: bool = False,
        names: Sequence[str] | None = None,
    ):
        self.estimators = tuple(estimators)
        self.weights = (1.0,) * len(self.estimators) if weights is None else tuple(float(w) for w in weights)
        self.normalize = normalize
        self.names = tuple(map(str, range(len(self.estimators)))) if names is None else tuple(names)

    def __check_init__(self):
        if not self.estimators:
            raise ValueError("`estimators` must have at least one estimator.")
        if not len(self.weights) == len(self.names) == len(self.estimators) or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"`weights` and `names` must have one entry per estimator, and names must differ; got {self.weights} "
                f"and {self.names} for {len(self.estimators)} estimators."
            )
        if not all(0 < w < math.inf for w in self.weights):
            raise ValueError(f"`weights` must be positive, got {self.weights}.")

    def init(self, learner: Learner, *, key: PRNGKeyArray) -> tuple:
        keys = jax.random.split(key, len(self.estimators))
        return tuple(e.init(learner, key=k) for e, k in zip(self.estimators, keys, strict=True))

    def estimate(self, learner: Learner, state: tuple, *, key: PRNGKeyArray) -> tuple[Estimate, tuple]:
        keys = jax.random.split(key, len(self.estimators))
        found = [e.estimate(learner, s, key=k) for e, s, k in zip(self.estimators, state, keys, strict=True)]
        estimates = [estimate for estimate, _ in found]
        grads = [self._scaled(e.grad) for e in estimates]
        weights = jnp.asarray(self.weights, jnp.float32)
        # A task without an estimate does not count in the mean.
        counted = weights * jnp.stack([e.usable > 0 for e in estimates]).astype(jnp.float32)

        def mean(*values, weights=weights) -> Array:
            total = sum((w * v.astype(jnp.float32) for w, v in zip(weights, values, strict=True)), jnp.float32(0.0))
            return total / jnp.where(jnp.sum(weights) > 0, jnp.sum(weights), 1.0)

        diagnostics = {
            f"{name}: {what}": value
            for name, e in zip(self.names, estimates, strict=True)
            for what, value in {
                "loss": e.loss,
                "meta_loss": e.meta_loss,
                "usable": e.usable,
                "grad_norm": optax.tree.norm(e.grad),
                **e.diagnostics,
            }.items()
        }
        mixed = Estimate(
            loss=mean(*(e.loss for e in estimates)),
            meta_loss=mean(*(e.meta_loss for e in estimates)),
            grad=jax.tree.map(lambda *g: mean(*g, weights=counted).astype(g[0].dtype), *grads),
            finite=mean(*(e.finite for e in estimates)),
            usable=mean(*(e.usable for e in estimates)),
            inner_steps=jnp.sum(jnp.stack([e.inner_steps for e in estimates])),
            diagnostics=diagnostics,
        )
        return mixed, tuple(after for _, after in found)

    def _scaled(self, grad: Any) -> Any:
        if not self.normalize:
            return grad
        norm = optax.tree.norm(grad)
        return jax.tree.map(lambda g: g / jnp.where(norm > 0, norm, 1.0), grad)
