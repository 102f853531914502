import optax
from jaxtyping import Array, Float

from .._types import Params, typechecked
from ._base import AbstractOptimizer, StepContext, cast_like, checked_update


class Adam(AbstractOptimizer[optax.OptState]):
    r"""`optax.adam` with its learning rate as a field: a float is a constant; an array can be mapped over or learned.

    **Arguments:**

    - `learning_rate`: the step size.
    - `b1`, `b2`, `eps`: as in optax.

    ??? cite "Source"
        Kingma & Ba, *Adam* (arXiv 1412.6980).
    """

    learning_rate: float | Float[Array, "..."]
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def _transformation(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps), optax.scale_by_learning_rate(self.learning_rate)
        )

    @typechecked
    def init(self, params: Params) -> optax.OptState:
        return self._transformation().init(params)

    @checked_update
    def update(
        self, grads: Params, state: optax.OptState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, optax.OptState]:
        updates, state = self._transformation().update(grads, state, params)
        return cast_like(updates, params), state


class SGD(AbstractOptimizer[optax.OptState]):
    r"""$\Delta p = -\eta\, g$, with the learning rate as a field: a float is a constant; an array can be mapped over.

    **Arguments:**

    - `learning_rate`: $\eta$.
    """

    learning_rate: float | Float[Array, "..."]

    @typechecked
    def init(self, params: Params) -> optax.OptState:
        return optax.scale_by_learning_rate(self.learning_rate).init(params)

    @checked_update
    def update(
        self, grads: Params, state: optax.OptState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, optax.OptState]:
        updates, state = optax.scale_by_learning_rate(self.learning_rate).update(grads, state, params)
        return cast_like(updates, params), state
