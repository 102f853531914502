import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import _tree


def _number(x: Any) -> Float[Array, ""]:
    return jnp.asarray(x, jnp.float32)


class AbstractShaping(eqx.Module):
    """Transforms the loss differences of all pairs before they weight the scores of the noise."""

    @abc.abstractmethod
    def __call__(
        self, differences: Float[Array, " pairs"], losses: Float[Array, "pairs 2"], usable: Bool[Array, " pairs"]
    ) -> Float[Array, " pairs"]:
        """The shaped difference of each pair.

        **Arguments:**

        - `differences`: the loss of the first member minus that of the second.
        - `losses`: of the first member, and of the second.
        - `usable`: which pairs count; the results for other pairs are ignored.
        """


class Difference(AbstractShaping):
    r"""$L^+ - L^-$ unchanged, the only shaping under which estimates are unbiased."""

    def __call__(self, differences, losses, usable):
        return differences


class ClippedDifference(AbstractShaping):
    r"""$L^+ - L^-$ clipped to $[-c, c]$.

    **Arguments:**

    - `max_difference`: $c$.

    Raises `ValueError` if `max_difference` is not positive.
    """

    max_difference: Float[Array, ""] = eqx.field(converter=_number)

    def __check_init__(self):
        if _tree.concrete(self.max_difference) and not jnp.all(self.max_difference > 0):
            raise ValueError(f"`max_difference` must be positive, got {self.max_difference}.")

    def __call__(self, differences, losses, usable):
        return jnp.clip(differences, -self.max_difference, self.max_difference)


class SignOfDifference(AbstractShaping):
    r"""$c \operatorname{sign}(L^+ - L^-)$, which does not depend on the scale of the losses.

    **Arguments:**

    - `scale`: $c$.
    """

    scale: Float[Array, ""] = eqx.field(default=1.0, converter=_number)

    def __call__(self, differences, losses, usable):
        return self.scale * jnp.sign(differences)


class CenteredRanks(AbstractShaping):
    r"""$r^+ - r^-$, where $r \in [-\frac12, \frac12]$ are the equally spaced ranks of the losses of all usable members.

    Invariant to every increasing transformation of the losses. Equal losses have the same rank.

    ??? cite "Source"
        Salimans et al., *Evolution Strategies as a Scalable Alternative to Reinforcement Learning* (arXiv 1703.03864).
    """

    def __call__(self, differences, losses, usable):
        usable = jnp.repeat(usable, 2)
        flat = jnp.where(usable, losses.ravel(), jnp.inf)
        below = jnp.sum((flat[None] < flat[:, None]) & usable[None], axis=1, dtype=jnp.float32)
        equal = jnp.sum((flat[None] == flat[:, None]) & usable[None], axis=1, dtype=jnp.float32)
        count = jnp.sum(usable, dtype=jnp.float32)
        ranks = (below + 0.5 * (equal - 1.0)) / jnp.maximum(count - 1.0, 1.0) - 0.5
        return jnp.subtract(*ranks.reshape(losses.shape).T)


class ZScores(AbstractShaping):
    r"""$(L^+ - L^-) / s$ with $s$ the standard deviation of the losses of all usable members.

    Invariant to shifts and scales of the losses.
    """

    def __call__(self, differences, losses, usable):
        count = 2.0 * jnp.maximum(1.0, jnp.sum(usable, dtype=jnp.float32))
        kept = jnp.where(usable[:, None], losses, 0.0)
        centered = jnp.where(usable[:, None], losses - jnp.sum(kept) / count, 0.0)
        std = jnp.sqrt(jnp.sum(jnp.square(centered)) / count)
        return differences / jnp.where(std > 0, std, 1.0)
