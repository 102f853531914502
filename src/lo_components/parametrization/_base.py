import abc
import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

Role = Literal["input", "hidden", "output", "vector"]


@dataclasses.dataclass(frozen=True)
class WidthSpec:
    """How one array of a model grows with the model's width.

    **Arguments:**

    - `shape`: the array's shape.
    - `role`: `"hidden"` where fan-in and fan-out both grow with the width, `"input"` where only fan-out does,
        `"output"` where only fan-in does, `"vector"` for biases, normalization scales and everything without a fan-in.
    - `fan_in`: the number of inputs that each output sums over.
    - `fan_in_mult`: the fan-in in units of the base width's; under the papers' absolute convention the fan-in itself.
    - `fan_out_mult`: the same for the fan-out.
    """

    shape: tuple[int, ...]
    role: Role
    fan_in: int = 1
    fan_in_mult: float = 1.0
    fan_out_mult: float = 1.0

    def __post_init__(self):
        if self.role not in ("input", "hidden", "output", "vector"):
            raise ValueError(f"`role` must be 'input', 'hidden', 'output' or 'vector', got {self.role!r}.")
        if self.fan_in < 1 or not all(m > 0 and math.isfinite(m) for m in (self.fan_in_mult, self.fan_out_mult)):
            raise ValueError(
                "`fan_in` must be at least 1 and the multipliers positive, got "
                f"{self.fan_in}, {self.fan_in_mult} and {self.fan_out_mult}."
            )


class AbstractParametrization(eqx.Module):
    """Says, for each array of a model, how to initialize it, multiply its layer's output and scale its updates.

    The three together decide how a model behaves as its width grows. Models ask for the first two when they are built;
    tasks ask for the third and inner steps apply it around the optimizer
    ([`lo_components.optimizers.Scaled`][]).
    """

    @abc.abstractmethod
    def init_std(self, width: WidthSpec) -> float:
        """The standard deviation of the initial values."""

    @abc.abstractmethod
    def forward_multiplier(self, width: WidthSpec) -> float:
        """The factor on the layer's product with the weight."""

    @abc.abstractmethod
    def update_scale(self, width: WidthSpec) -> float:
        """The factor on the optimizer's update."""

    def update_scales(self, widths: PyTree[WidthSpec]) -> PyTree[float]:
        """`update_scale` of every leaf, in the structure of `widths`."""
        return jax.tree.map(self.update_scale, widths)
