import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import Progress


class TrainingFraction(eqx.Module):
    r"""How far training has come: $\tanh(10\,(t/n - \tau))$ at step $t$ of $n$, for each of some fractions $\tau$.

    **Arguments:**

    - `fractions`: the fractions.

    ??? cite "Source"
        VeLO (arXiv 2211.09760).
    """

    fractions: tuple[float, ...] = eqx.field(default=(0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1), static=True)

    @property
    def size(self) -> int:
        """The number of features."""
        return len(self.fractions)

    def __call__(self, progress: Progress) -> Float[Array, " fractions"]:
        """The values for one step.

        **Arguments:**

        - `progress`: the step and the length of training.

        Raises `ValueError` if the length of training is not known.
        """
        fraction = progress.step.astype(jnp.float32) / progress.required("num_steps").astype(jnp.float32)
        return jnp.tanh(10.0 * (fraction - jnp.asarray(self.fractions, jnp.float32)))
