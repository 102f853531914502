import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..parametrization import SP, AbstractParametrization, WidthSpec
from ._base import AbstractTask
from ._family import AbstractTaskFamily


class Quadratic(AbstractTask[None]):
    r"""$\tfrac12 \lVert p \rVert^2$ from fixed initial parameters, without data or noise, for which theory is exact.

    **Arguments:**

    - `start`: the initial parameters.
    - `widths`, `parametrization`, `max_loss`: see [`lo_components.tasks.AbstractTask`][].
    """

    start: Float[Array, " n"]
    widths: PyTree[WidthSpec] | None = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = eqx.field(default=math.inf, static=True)

    def init(self, *, key: PRNGKeyArray) -> Params:
        return self.start

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> None:
        return None

    def loss(self, params: Params, batch: None, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.square(params))


class LinearRegression(AbstractTask[tuple[Float[Array, "batch n"], Float[Array, " batch"]]]):
    r"""$\frac1{2B} \sum_i (\langle x_i, p\rangle - y_i)^2$ with $x_{ij} \sim \mathcal N(0, \lambda_j)$ and
    $y_i = \langle x_i, p^*\rangle + \sigma \epsilon_i$, resampled in every step: stochastic gradients of a loss with a
    closed form.

    **Arguments:**

    - `solution`: $p^*$.
    - `spectrum`: $\lambda$, the eigenvalues of the Hessian.
    - `noise`: $\sigma$.
    - `batch_size`: $B$.
    - `widths`, `parametrization`, `max_loss`: see [`lo_components.tasks.AbstractTask`][].

    Raises `ValueError` if `solution` and `spectrum` have different shapes.
    """

    solution: Float[Array, " n"]
    spectrum: Float[Array, " n"]
    noise: float = eqx.field(default=0.0, static=True)
    batch_size: int = eqx.field(default=32, static=True)
    widths: PyTree[WidthSpec] | None = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = eqx.field(default=math.inf, static=True)

    def __check_init__(self):
        if self.solution.shape != self.spectrum.shape:
            raise ValueError(
                "`solution` and `spectrum` must have the same shape, "
                f"got {self.solution.shape} and {self.spectrum.shape}."
            )

    def init(self, *, key: PRNGKeyArray) -> Params:
        return jnp.zeros_like(self.solution)

    def batch(
        self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None
    ) -> tuple[Float[Array, "batch n"], Float[Array, " batch"]]:
        x_key, noise_key = jax.random.split(key)
        x = jnp.sqrt(self.spectrum)[None] * jax.random.normal(x_key, (self.batch_size, self.solution.size), jnp.float32)
        return x, x @ self.solution + self.noise * jax.random.normal(noise_key, (self.batch_size,), jnp.float32)

    def loss(
        self, params: Params, batch: tuple[Float[Array, "batch n"], Float[Array, " batch"]], *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        x, y = batch
        return 0.5 * jnp.mean(jnp.square(x @ params - y))

    def expected_loss(self, params: Params) -> Float[Array, ""]:
        r"""The expected loss at `params`: $\frac12 \sum_j \lambda_j (p_j - p^*_j)^2 + \frac12 \sigma^2$."""
        return 0.5 * jnp.sum(self.spectrum * jnp.square(params - self.solution)) + 0.5 * self.noise**2


class RandomRegressions(AbstractTaskFamily):
    r"""Linear regressions with $p^* \sim \mathcal N(0, I)$ and eigenvalues log-uniform in $[1/\kappa, 1]$.

    **Arguments:**

    - `size`: the number of parameters.
    - `max_condition`: $\kappa$, at least 1.
    - `noise`, `batch_size`: as in [`lo_components.tasks.LinearRegression`][].

    Raises `ValueError` if `size` or `max_condition` is below 1, or if `max_condition` is not finite.
    """

    size: int = eqx.field(static=True)
    max_condition: float = eqx.field(default=100.0, static=True)
    noise: float = eqx.field(default=0.0, static=True)
    batch_size: int = eqx.field(default=32, static=True)

    def __check_init__(self):
        if self.size < 1 or not 1.0 <= self.max_condition < math.inf:
            raise ValueError(
                f"`size` and `max_condition` must be at least 1, got {self.size} and {self.max_condition}."
            )

    def sample(self, *, key: PRNGKeyArray) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        solution_key, spectrum_key = jax.random.split(key)
        logarithm = jax.random.uniform(spectrum_key, (self.size,), jnp.float32, -math.log(self.max_condition), 0.0)
        return jax.random.normal(solution_key, (self.size,), jnp.float32), jnp.exp(logarithm)

    def task(self, sampled: tuple[Float[Array, " n"], Float[Array, " n"]]) -> LinearRegression:
        solution, spectrum = sampled
        return LinearRegression(solution=solution, spectrum=spectrum, noise=self.noise, batch_size=self.batch_size)
