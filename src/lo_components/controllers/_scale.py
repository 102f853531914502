import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..schedules import Linear, Progress, TrainingFraction
from ._base import AbstractController


class ScaleController(AbstractController[tuple[()]]):
    r"""One control for each tensor: a factor on its updates that depends on its summary and the time, 1 at first.

    With $x$ the [`lo_components.schedules.TrainingFraction`][] and the summary, the factor is
    $\exp(L \tanh(y / L))$ for $y = W x + b + V\, \mathrm{relu}(U x + c)$. $W$, $b$ and $V$ start at zero.
    [`lo_components.steps.TimesLastControl`][] multiplies by it. Needs the length of training.
    """

    fraction: TrainingFraction
    skip: Linear
    hidden: Linear
    readout: Linear
    limit: float = eqx.field(static=True)
    out_size: int = eqx.field(default=1, init=False, static=True)

    def __init__(self, in_size: int, *, hidden_size: int = 16, limit: float = 1.5, key: PRNGKeyArray):
        """**Arguments:**

        - `in_size`: the number of numbers in a summary.
        - `hidden_size`: the number of hidden units.
        - `limit`: $L$; the factor stays between $e^{-L}$ and $e^L$.
        - `key`: for the initial weights.
        """
        self.fraction = TrainingFraction()
        inputs = self.fraction.size + in_size
        self.skip = jax.tree.map(jnp.zeros_like, Linear(inputs, 1, key=key))
        self.hidden = Linear(inputs, hidden_size, key=key)
        self.readout = jax.tree.map(jnp.zeros_like, Linear(hidden_size, 1, key=key))
        self.limit = limit

    @property
    def in_size(self) -> int:
        return self.hidden.weight.shape[0] - self.fraction.size

    def init(self, num_tensors: int) -> tuple[()]:
        return ()

    def __call__(
        self, summaries: Float[Array, "tensors in_size"], state: tuple[()], progress: Progress
    ) -> tuple[Float[Array, "tensors out_size"], tuple[()]]:
        time = self.fraction(progress)
        x = jnp.concatenate([jnp.broadcast_to(time, (summaries.shape[0], *time.shape)), summaries], axis=1)
        y = self.skip(x) + self.readout(jax.nn.relu(self.hidden(x)))
        return jnp.exp(self.limit * jnp.tanh(y / self.limit)), state
