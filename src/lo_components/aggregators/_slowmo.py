import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .. import _tree
from .._types import Params
from ..optimizers import StepContext
from ..parametrization import UNSCALED, UpdateRule, every_leaf
from ._base import AbstractMaskedAggregator


class SlowMo(AbstractMaskedAggregator[PyTree[Float[Array, "..."]]]):
    r"""Momentum over rounds: $v \leftarrow \beta v + \bar d$, $\Delta p = \alpha v$, with $\bar d$ the mean delta.

    The paper divides by the local learning rate $\gamma$ and multiplies by it again,
    $u \leftarrow \beta u - \bar d/\gamma$, $\Delta p = -\alpha\gamma u$. If $\gamma$ is constant, this is the same
    update, with $v = -\gamma u$. With $\beta = 0$ and $\alpha = 1$ it is [`lo_components.aggregators.Mean`][]. The
    LAgg-A paper's research code uses the convention of `absolute`.

    **Arguments:**

    - `momentum`: $\beta$, at least 0 and below 1.
    - `learning_rate`: $\alpha$, in the paper's convention.

    Floats are constants; arrays can be mapped over by `jax.vmap` or meta-learned.

    Raises `ValueError` if `momentum` is negative, or at least 1.

    **Example:**

    ```pycon
    >>> rounds = loc.unroll.LocalRound(num_workers=8, local_steps=4, local_optimizer=optax.sgd(0.01))
    >>> task, slowmo = loc.tasks.Quadratic(start=jnp.ones(4)), loc.aggregators.SlowMo(momentum=0.5)
    >>> curves = loc.meta.evaluate(slowmo, task, num_steps=20, inner_step=rounds, key=jax.random.key(0))
    ```

    ??? cite "Source"
        Wang et al., *SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum* (arXiv 1910.00643),
        algorithm 1.
    """

    momentum: float | Float[Array, ""] = 0.5
    learning_rate: float | Float[Array, ""] = 1.0

    def __check_init__(self):
        if isinstance(self.momentum, float | int) and not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {self.momentum}.")

    @classmethod
    def absolute(cls, *, momentum: float, learning_rate: float, local_learning_rate: float) -> "SlowMo":
        r"""The research code's convention: $u \leftarrow \beta u - \bar d/\gamma$, $\Delta p = -\alpha u$.

        The update is not multiplied by $\gamma$, so this $\alpha$ is $\gamma$ times the paper's. With
        $\alpha = \gamma$ and $\beta = 0$, the update is the mean delta.

        **Arguments:**

        - `momentum`: $\beta$.
        - `learning_rate`: $\alpha$ in this convention.
        - `local_learning_rate`: $\gamma$, positive.

        Raises `ValueError` if `local_learning_rate` is not positive.
        """
        if _tree.concrete(local_learning_rate) and not local_learning_rate > 0:
            raise ValueError(f"`local_learning_rate` must be positive, got {local_learning_rate}.")
        return cls(momentum, learning_rate / local_learning_rate)

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return every_leaf(params, UNSCALED)

    def init_inner(self, params: Params) -> PyTree[Float[Array, "..."]]:
        return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: PyTree[Float[Array, "..."]],
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], PyTree[Float[Array, "..."]]]:
        state = jax.tree.map(lambda v, d: _tree.scaled(self.momentum, v) + d, state, mean)
        return jax.tree.map(lambda v: _tree.scaled(self.learning_rate, v), state), state
