from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import Progress

_COUNT = 10


class LossBufferState(NamedTuple):
    """State of a [`lo_components.schedules.LossBuffer`][].

    **Arguments:**

    - `means`: moving averages of the loss, without bias correction, `[10]`.
    - `lowest`: the lowest values of their bias-corrected averages so far, `[10]`.
    """

    means: Float[Array, " 10"]
    lowest: Float[Array, " 10"]


class LossBuffer(eqx.Module):
    r"""Nine features that say whether the loss is falling, on time scales from one step to the length of training $n$.

    Ten moving averages of the loss with decay rates $d_j = e^{-1/h_j}$, where $h_j$ lies between 10 and $n$, in equal
    ratios. A loss above twice the largest average counts as that much. With bias-corrected averages $c_j$ and their
    lowest values so far $l_j$, the features are $(c_j - l_j) / \max(10^{-8}, c_{j+1} - l_j) - 1$ within $\pm 1$: -1 for
    a falling loss, and 0 in the first two steps.

    **Arguments:**

    - `num_steps`: $n$; `None` for the length of training.

    ??? cite "Source"
        VeLO (arXiv 2211.09760).
    """

    num_steps: int | None = eqx.field(default=None, static=True)
    size: ClassVar[int] = _COUNT - 1

    def init(self) -> LossBufferState:
        """The state before the first loss."""
        return LossBufferState(jnp.zeros(_COUNT, jnp.float32), jnp.full(_COUNT, 999999999999.0, jnp.float32))

    def __call__(self, state: LossBufferState, progress: Progress) -> tuple[Float[Array, " 9"], LossBufferState]:
        """The features, and the next state.

        **Arguments:**

        - `state`: from `init` or the previous call.
        - `progress`: the step, the loss and the length of training, which must all be known.

        Raises `ValueError` if the loss or the length of training is not known.
        """
        loss = progress.required("loss")
        num_steps = progress.required("num_steps") if self.num_steps is None else jnp.asarray(self.num_steps)
        longest = jnp.log10(num_steps.astype(jnp.float32))
        decays = jnp.exp(-1.0 / 10.0 ** jnp.linspace(1.0, longest, _COUNT))
        correction = 1.0 - decays ** (progress.step.astype(jnp.float32) + 1.0)
        highest = jnp.where(progress.step == 0, jnp.abs(loss), jnp.max(state.means / correction))
        loss = jnp.minimum(2.0 * jnp.abs(highest), loss)
        means = decays * state.means + (1.0 - decays) * loss
        corrected = means / correction
        lowest = jnp.minimum(state.lowest, corrected)
        above = corrected[:-1] - lowest[:-1]
        features = jnp.clip(above / jnp.maximum(1e-8, corrected[1:] - lowest[:-1]) - 1.0, -1.0, 1.0)
        return jnp.where(progress.step < 2, 0.0, features), LossBufferState(means, lowest)
