import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractSchedule, Progress


class WarmUpAndDecay(AbstractSchedule[tuple[()]]):
    r"""A linear rise to $\lambda$ over a fraction $f$ of the steps, then a linear decay to almost 0 at the last step.

    At step $t$ of $n$, with $w = \max(1, f n)$: $\lambda \min\left(\frac{t + 1}{w}, \frac{n - t}{n - w}, 1\right)$.
    Needs the length of training.

    The longer the training, the lower is often the best peak. If `reference_steps` is $r$, the peak is
    $\lambda \min(1, \sqrt{r / n})$, the rule for updates of a fixed size.

    **Arguments:**

    - `peak`: $\lambda$. An array is meta-learned.
    - `warm_up`: $f$, at least 0 and below 1.
    - `reference_steps`: $r$, the longest training for which `peak` is meant; `None`: the peak is the same for all.

    Raises `ValueError` if `warm_up` or `reference_steps` is out of range.

    ??? cite "Source"
        The square root is from Defazio et al., *Optimal Linear Decay Learning Rate Schedules and Further Refinements*
        (arXiv 2310.07831).
    """

    peak: float | Float[Array, ""]
    warm_up: float = eqx.field(default=0.05, static=True)
    reference_steps: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if not 0.0 <= self.warm_up < 1.0:
            raise ValueError(f"`warm_up` must be at least 0 and below 1, got {self.warm_up}.")
        if self.reference_steps is not None and self.reference_steps < 1:
            raise ValueError(f"`reference_steps` must be at least 1 or `None`, got {self.reference_steps}.")

    def init(self) -> tuple[()]:
        return ()

    def __call__(self, state: tuple[()], progress: Progress) -> tuple[Float[Array, ""], tuple[()]]:
        t, n = (x.astype(jnp.float32) for x in (progress.step, progress.required("num_steps")))
        w = jnp.maximum(1.0, self.warm_up * n)
        decay = jnp.maximum(0.0, n - t) / jnp.maximum(1.0, n - w)
        peak = self.peak
        if self.reference_steps is not None:
            peak = peak * jnp.minimum(1.0, jnp.sqrt(self.reference_steps / jnp.maximum(1.0, n)))
        return peak * jnp.minimum(jnp.minimum((t + 1.0) / w, decay), 1.0), state
