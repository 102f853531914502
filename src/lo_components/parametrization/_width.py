"""How the axes of one array grow with the width of a model."""

import dataclasses
import math
from typing import Literal

Role = Literal["input", "hidden", "output", "vector"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """The inputs or the outputs of a layer: their number, and how it grows with the model's width.

    **Arguments:**

    - `size`: the number of units.
    - `base`: their number in the base model, which is `size` if it does not grow; `None` under the papers' absolute
        convention, in which the multiplier is the fan-in (or fan-out) itself.
    - `wide`: whether the number grows with the width.

    Raises `ValueError` if `size` or `base` is below 1.
    """

    size: int
    base: int | None
    wide: bool

    @classmethod
    def fixed(cls, size: int) -> "Axis":
        """An axis with the same `size` at every width: pixels, classes, tokens."""
        return cls(size, size, False)

    @classmethod
    def growing(cls, size: int, base: int | None = None) -> "Axis":
        """An axis that grows with the width, from `base` units in the base model (or `None`) to `size` units."""
        return cls(size, base, True)

    def __post_init__(self):
        if self.size < 1 or (self.base is not None and self.base < 1):
            raise ValueError(f"`size` and `base` must be at least 1, got {self.size} and {self.base}.")

    def times(self, factor: int) -> "Axis":
        """An axis with `factor` times as many units."""
        return Axis(self.size * factor, None if self.base is None else self.base * factor, self.wide)


@dataclasses.dataclass(frozen=True)
class WidthSpec:
    """How one array of a model grows with the model's width.

    **Arguments:**

    - `shape`: the array's shape.
    - `role`: `"hidden"` if fan-in and fan-out both grow with the width, `"input"` if only fan-out does (first layers,
        embeddings, depthwise convolutions), `"output"` if only fan-in does (readouts), and `"vector"` for biases,
        normalization scales and weights that do not grow.
    - `fan_in`: the number of inputs that each output sums over; `None` for biases and normalization scales.
    - `fan_in_mult`: the ratio of the fan-in to that of the base model; under the papers' absolute convention, the
        fan-in itself. It is 1 if the fan-in does not grow.
    - `fan_out_mult`: the same for the fan-out.
    - `residual`: whether the array belongs to a residual branch.
    - `bottleneck`: whether an array of role `"output"` is followed by further layers instead of being the readout, so
        that it must not start at zero.
    - `inferred`: whether the array is in a layer of another library, which applies no forward multiplier.

    Raises `ValueError` if a value is out of range, or if an array of another role than `"vector"` has no `fan_in`.
    """

    shape: tuple[int, ...]
    role: Role
    fan_in: int | None = None
    fan_in_mult: float = 1.0
    fan_out_mult: float = 1.0
    residual: bool = False
    bottleneck: bool = False
    inferred: bool = dataclasses.field(default=False, compare=False)

    def __post_init__(self):
        if self.role not in ("input", "hidden", "output", "vector"):
            raise ValueError(f"`role` must be 'input', 'hidden', 'output' or 'vector', got {self.role!r}.")
        if self.fan_in is None and self.role != "vector":
            raise ValueError(f"An array of role {self.role!r} must have a `fan_in`.")
        if (self.fan_in is not None and self.fan_in < 1) or not all(
            m > 0 and math.isfinite(m) for m in (self.fan_in_mult, self.fan_out_mult)
        ):
            raise ValueError(
                "`fan_in` must be at least 1 and the multipliers positive, got "
                f"{self.fan_in}, {self.fan_in_mult} and {self.fan_out_mult}."
            )

    @classmethod
    def weight(
        cls,
        shape: tuple[int, ...],
        fan_in: Axis,
        fan_out: Axis,
        *,
        kernel_size: int = 1,
        residual: bool = False,
        bottleneck: bool = False,
    ) -> "WidthSpec":
        """The declaration of a weight, whose role follows from which sides grow.

        **Arguments:**

        - `shape`: the weight's shape.
        - `fan_in`, `fan_out`: the layer's inputs and outputs.
        - `kernel_size`: the number of positions in a convolution's kernel.
        - `residual`: whether the weight belongs to a residual branch.
        - `bottleneck`: whether further layers follow if only the inputs grow.
        """
        if fan_in.wide:
            role = "hidden" if fan_out.wide else "output"
        else:
            role = "input" if fan_out.wide else "vector"
        multipliers = _multiplier(fan_in, kernel_size), _multiplier(fan_out, 1)
        return cls(shape, role, fan_in.size * kernel_size, *multipliers, residual, bottleneck and role == "output")

    @classmethod
    def vector(cls, shape: tuple[int, ...], units: Axis, *, residual: bool = False) -> "WidthSpec":
        """The declaration of a bias, or of a normalization's scale.

        **Arguments:**

        - `shape`: the array's shape.
        - `units`: the units that it belongs to.
        - `residual`: whether it belongs to a residual branch.
        """
        return cls(shape, "vector", fan_out_mult=_multiplier(units, 1), residual=residual)


def _multiplier(axis: Axis, kernel_size: int) -> float:
    if not axis.wide:
        return 1.0
    return float(axis.size * kernel_size) if axis.base is None else axis.size / axis.base
