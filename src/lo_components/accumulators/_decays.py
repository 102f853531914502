import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Decays(eqx.Module):
    r"""Decay rates of exponential moving averages, constant or meta-learned.

    A meta-learned decay is stored as an unconstrained offset $u$ from its initial value $b_0$,

    $$b = 1 - \exp\bigl(10\,(\ln(1 - b_0)/10 + u)\bigr),$$

    so that $u = 0$, the initial offset, gives $b_0$, and every $u$ gives $b < 1$. $b$ may become negative; accumulators
    of squares clip it at 0.

    ??? cite "Source"
        The parametrization of `AdafacMLPLOpt` (small_fc_lopt) in google/learned_optimization.
    """

    initial: tuple[float, ...] = eqx.field(static=True)
    offset: Float[Array, " c"] | None

    def __init__(self, initial: Sequence[float], *, learnable: bool):
        """**Arguments:**

        - `initial`: the decay rates at initialization, each in `[0, 1)`.
        - `learnable`: whether the decay rates are meta-learned.

        Raises `ValueError` if `initial` is empty or a rate lies outside `[0, 1)`.
        """
        self.initial = tuple(float(b) for b in initial)
        self.offset = jnp.zeros(len(self.initial), jnp.float32) if learnable else None

    def __check_init__(self):
        if not self.initial or not all(0.0 <= b < 1.0 for b in self.initial):
            raise ValueError(f"`decays` must be one or more numbers in [0, 1), got {self.initial}.")

    def __len__(self) -> int:
        return len(self.initial)

    def __call__(self, ndim: int) -> Float[Array, "c ..."]:
        """The decay rates, with `ndim` trailing axes of size 1."""
        if self.offset is None:
            values = jnp.asarray(self.initial, jnp.float32)
        else:
            log_complement = jnp.asarray([math.log(1.0 - b) / 10.0 for b in self.initial], jnp.float32)
            values = 1.0 - jnp.exp(10.0 * (log_complement + self.offset))
        return values.reshape((-1,) + (1,) * ndim)
