import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._types import Params, Scales
from ._base import AbstractTask


class Quadratic(AbstractTask[None]):
    r"""$\tfrac12 \lVert p \rVert^2$ from a fixed start, without data or noise: the task on which theory is exact.

    **Arguments:**

    - `start`: the initial parameters.
    """

    start: Float[Array, " n"]
    update_scales: Scales | None = None
    max_loss: float = eqx.field(default=math.inf, static=True)

    def init(self, *, key: PRNGKeyArray) -> Params:
        return self.start

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> None:
        return None

    def loss(self, params: Params, batch: None, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.square(params))
