import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._tree import concrete, structure_difference
from .._types import Scales, brief, path_name
from ._rule import UNSCALED, UpdateRule, every_leaf

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


def check_widths(
    widths: PyTree[WidthSpec], arrays: PyTree, parametrization: "AbstractParametrization | None" = None
) -> None:
    """Raise `ValueError` unless `widths` declares exactly the given arrays.

    **Arguments:**

    - `widths`: from [`lo_components.parametrization.infer_widths`][] or [`lo_components.nn.declared_widths`][].
    - `arrays`: a model's floating-point arrays, or their shapes: `equinox.filter(model, equinox.is_inexact_array)`.
    - `parametrization`: if given, it is also an error if two arrays that an attention multiplies (query and key, or
        value and output) would both start at zero, since neither would ever move.
    """
    expected, problem = dict(_with_names(arrays)), ""
    for path, spec in _with_names(widths):
        if not isinstance(spec, WidthSpec):
            problem = f"has {brief(spec)} at `{path}`"
        elif path in expected and spec.shape != np.shape(expected[path]):
            problem = f"has the shape {spec.shape} at `{path}` instead of {np.shape(expected[path])}"
        if problem:
            break
    problem = problem or structure_difference(widths, arrays)
    if problem:
        raise ValueError(
            "`widths` must have one `WidthSpec` of the right shape for each floating-point array of the model, in the "
            f"structure of `equinox.filter(model, equinox.is_inexact_array)`, but it {problem}; call `infer_widths` "
            "with the model's own width as `target`."
        )
    if parametrization is not None:
        _check_zeros(widths, parametrization)


def check_multipliers(widths: PyTree[WidthSpec], parametrization: "AbstractParametrization") -> None:
    """Raise `TypeError` if the model of inferred widths would have to apply forward multipliers."""
    for path, spec in _with_names(widths):
        if isinstance(spec, WidthSpec) and spec.inferred:
            multiplier = parametrization.forward_multiplier(spec)
            if concrete(multiplier) and multiplier != 1:
                raise TypeError(
                    f"The output of `{path}` must be multiplied by {float(multiplier):.3g} under this parametrization, "
                    "which the model's own code does not do; use `Absorbed(MuP())` in place of `MuP()`."
                )


def _with_names(tree: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _check_zeros(widths: PyTree[WidthSpec], parametrization: "AbstractParametrization") -> None:
    """Raise `ValueError` if both factors of a product in an attention start at zero, so that neither ever moves."""
    zeros = []
    for path, spec in _with_names(widths):
        std = parametrization.init_std(spec) if spec.role == "output" else 1.0
        if isinstance(std, int | float) and std == 0:
            zeros.append(path)
    for attention in _attentions(zeros).values():
        for first, second in (("query", "key"), ("value", "out")):
            if first in attention and second in attention:
                raise ValueError(
                    f"`{attention[first]}` and `{attention[second]}` would both start at zero, and since they are "
                    "multiplied neither would ever move; declare them as 'bottleneck' instead of 'output' (in "
                    "`infer_widths(..., roles=...)`, or by `WidthSpec(..., bottleneck=True)`)."
                )


_PROJECTIONS = {
    **dict.fromkeys(("query", "q"), "query"),
    **dict.fromkeys(("key", "k"), "key"),
    **dict.fromkeys(("value", "v"), "value"),
    **dict.fromkeys(("out", "output", "o"), "out"),
}


def path_parts(path: str) -> list[str]:
    """The names in an array's path, without the `value` of a Flax NNX variable."""
    parts = path.split("/")
    is_variable = parts[-1] == "value" and parts[-2:-1] in (["kernel"], ["bias"], ["scale"], ["embedding"])
    return parts[:-1] if is_variable else parts


def _attentions(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """The arrays that compute the queries, keys, values and outputs of each attention, as their names say."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        parts = path_parts(path)
        for end in range(len(parts) - 1, max(-1, len(parts) - 3), -1):
            if kind := _PROJECTIONS.get(parts[end].removesuffix("_proj")):
                found.setdefault("/".join(parts[:end]), {})[kind] = path
                break
    return found


def inner_projections(paths: Iterable[str]) -> set[str]:
    """The weights that compute the queries, keys or values of an attention, as their names say."""
    attentions = [a for a in _attentions(paths).values() if {"query", "key"} <= a.keys()]
    return {attention[kind] for attention in attentions for kind in ("query", "key", "value") if kind in attention}


class AbstractParametrization(eqx.Module):
    """The initialization, forward multiplier and update scale of each array of a model.

    They determine how a model behaves as its width (and depth) grows. Models ask for initialization and forward
    multipliers when they are built. Inner steps ask for update scales, which depend on the optimizer too, and wrap the
    optimizer in [`lo_components.optimizers.Scaled`][].
    """

    @abc.abstractmethod
    def init_std(self, width: WidthSpec) -> float:
        """The standard deviation of the initial values.

        **Arguments:**

        - `width`: the array's declaration.
        """

    @abc.abstractmethod
    def forward_multiplier(self, width: WidthSpec) -> float:
        """The factor on the layer's product with the weight.

        **Arguments:**

        - `width`: the weight's declaration.
        """

    @abc.abstractmethod
    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float | Float[Array, ""]:
        """The factor on an optimizer's update.

        **Arguments:**

        - `width`: the array's declaration.
        - `rule`: how the size of the update depends on the gradient; not `UNSCALED`.
        """

    @abc.abstractmethod
    def attention_scale(self, head: Axis) -> float:
        """The factor on the inner products of queries and keys.

        **Arguments:**

        - `head`: the units of one head.
        """

    @property
    @abc.abstractmethod
    def residual_multiplier(self) -> float:
        """The factor on the output of each residual branch."""

    def update_scales(self, widths: PyTree[WidthSpec], rules: PyTree[UpdateRule]) -> Scales:
        """The factors on an optimizer's updates, one for each array.

        **Arguments:**

        - `widths`: the declarations of a model's arrays.
        - `rules`: the optimizer's or aggregator's rules, in the structure of `widths`, or one rule for all arrays.

        Raises `TypeError` if `widths` were inferred from a model that does not apply the forward multipliers of this
        parametrization.
        """
        check_multipliers(widths, self)
        if isinstance(rules, UpdateRule):
            rules = every_leaf(widths, rules)

        def scale(width: WidthSpec, rule: UpdateRule):
            return 1.0 if rule == UNSCALED else self.update_scale(width, rule)

        return jax.tree.map(scale, widths, rules)
