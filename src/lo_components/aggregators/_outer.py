from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._types import Params
from ..optimizers import AbstractOptimizer, StepContext, as_optimizer
from ..parametrization import PROPORTIONAL, UNSCALED, UpdateRule
from ._base import AbstractMaskedAggregator


class OuterOptimizer(AbstractMaskedAggregator[Any]):
    r"""An optimizer that takes minus the mean delta, $-\bar d$, as its gradient.

    `optax.sgd(0.7, momentum=0.9, nesterov=True)` gives DiLoCo's outer optimizer, `optax.adam` gives FedAdam (with
    optax's bias correction), and `optax.sgd(1.0)` gives the mean.

    ??? cite "Source"
        Reddi et al., *Adaptive Federated Optimization* (arXiv 2003.00295); Douillard et al., *DiLoCo: Distributed
        Low-Communication Training of Language Models* (arXiv 2311.08105).
    """

    optimizer: AbstractOptimizer[Any]

    def __init__(self, optimizer: AbstractOptimizer[Any] | optax.GradientTransformation):
        """**Arguments:**

        - `optimizer`: an optax transformation, or an optimizer of this library.

        Raises `TypeError` for anything else.
        """
        self.optimizer = as_optimizer(optimizer)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """The optimizer's rules for `params`; updates proportional to the mean delta already have the right size."""
        rules = self.optimizer.update_rules(params)
        return jax.tree.map(lambda rule: UNSCALED if rule == PROPORTIONAL else rule, rules)

    def init_inner(self, params: Params) -> Any:
        return self.optimizer.init(_in_float32(params))

    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: Any,
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], Any]:
        return self.optimizer.update(jax.tree.map(jnp.negative, mean), state, _in_float32(params), context=context)


def _in_float32(params: Params) -> Params:
    """The arithmetic and state of aggregators are float32."""
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
