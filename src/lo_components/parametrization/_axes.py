"""Which axes of an array hold a layer's inputs, its outputs, the positions of a kernel, and stacked layers."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from ._base import path_parts
from ._width import Axis, WidthSpec

Axes = tuple[str, ...]
AXES = ("stack", "in", "out", "kernel")
ROLES = ("input", "hidden", "output", "bottleneck", "vector")

_NORMS = (eqx.nn.LayerNorm, eqx.nn.GroupNorm, eqx.nn.RMSNorm, eqx.nn.BatchNorm)
_OUT_FIRST = (eqx.nn.Linear, eqx.nn.GRUCell, eqx.nn.LSTMCell)
_CONVS = (eqx.nn.Conv, eqx.nn.ConvTranspose)
_KNOWN = (*_NORMS, *_OUT_FIRST, *_CONVS, eqx.nn.Embedding, eqx.nn.PReLU)
NORMED = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)


def is_known_layer(node: Any) -> bool:
    return isinstance(node, _KNOWN) or (isinstance(node, eqx.Module) and _layout_of(node) is not None)


def _layout_of(owner: Any) -> str | None:
    """The `layout` that a user's layer declares."""
    layout = vars(type(owner)).get("layout")
    return layout if layout in ("out_in", "in_out") else None


def indices(axes: Axes, word: str) -> list[int]:
    return [i for i, other in enumerate(axes) if other == word]


class ByPath:
    """Values given by the user, by path pattern."""

    def __init__(self, argument: str, values: Mapping[str, str]):
        self.argument = argument
        self.values = dict(values)
        self.unused = set(values)

    def __call__(self, path: str) -> str | None:
        # With the leading slash, "*/out" matches an array "out" at the root as well.
        names = [f"{slash}{name}" for name in {path, "/".join(path_parts(path))} for slash in ("", "/")]
        found = [pattern for pattern in self.values if any(fnmatch.fnmatchcase(name, pattern) for name in names)]
        self.unused -= set(found)
        if len({self.values[pattern] for pattern in found}) > 1:
            values = ", ".join(f"{pattern!r}: {self.values[pattern]!r}" for pattern in found[:3])
            raise ValueError(f"`{self.argument}` declares `{path}` in several ways: {values}.")
        return self.values[found[0]] if found else None

    def check_all_used(self) -> None:
        if self.unused:
            raise ValueError(
                f"`{self.argument}` names arrays that the model does not have: {', '.join(sorted(self.unused))}."
            )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of one array at three widths."""

    path: str
    base: tuple[int, ...]
    delta: tuple[int, ...]
    target: tuple[int, ...]
    absolute: bool

    def check(self) -> None:
        if not len(self.base) == len(self.delta) == len(self.target):
            raise ValueError(
                f"`{self.path}` has different numbers of axes at different widths: {self.base}, {self.delta}, "
                f"{self.target}."
            )
        if any(not w and b != t for w, b, t in zip(self.wide, self.base, self.target, strict=True)):
            raise ValueError(
                f"`{self.path}` has shapes {self.base} and {self.delta} at `base` and `delta`, but {self.target} at "
                "`target`; choose another `delta`, at which every axis that grows differs from `base`."
            )

    @property
    def wide(self) -> list[bool]:
        return [b != d for b, d in zip(self.base, self.delta, strict=True)]

    def units(self, indices: list[int]) -> Axis:
        """The units that several axes hold together."""
        base, target = (math.prod(shape[i] for i in indices) for shape in (self.base, self.target))
        if not any(self.wide[i] for i in indices):
            return Axis.fixed(target)
        return Axis.growing(target, None if self.absolute else base)

    def rate(self, indices: list[int]) -> float | None:
        """The growth of these axes from `base` to `delta`, or `None` if they are fixed."""
        if not any(self.wide[i] for i in indices):
            return None
        return math.prod(self.delta[i] for i in indices) / math.prod(self.base[i] for i in indices)

    def ambiguous(self) -> ValueError:
        stack = " ".join(["stack", *["stack"] * (len(self.target) - 3), "..."])
        example = " ".join(["kernel"] * (len(self.target) - 2) + ["in", "out"])
        return ValueError(
            f"`{self.path}`, of shape {self.target}, has axes that may be stacked layers, a convolution's kernel or "
            f"heads; declare what each axis holds, such as `axes={{{self.path!r}: {stack!r}}}` for stacked layers or "
            f"{example!r} for a convolution."
        )


class DeclaredAxes:
    """The axes given by the user, by path pattern. Raises `ValueError` if a declaration cannot be read.

    A declaration with `...` says which axes stack layers; the others are declared by another one, or by the layout.
    """

    def __init__(self, axes: Mapping[str, str]):
        for path, text in axes.items():
            words = text.split()
            others = [word for word in words if word not in AXES]
            partial = "..." in words and set(words) == {"stack", "..."} and words.count("...") == 1
            if not words or (others and not partial):
                raise ValueError(
                    f"`axes` declares `{path}` as {text!r}; expected one of 'stack', 'in', 'out' and 'kernel' for each "
                    "axis, such as 'in out out', or 'stack ...' if only the first axis is declared."
                )
        self.stacks = ByPath("axes", {path: text for path, text in axes.items() if "..." in text.split()})
        self.whole = ByPath("axes", {path: text for path, text in axes.items() if "..." not in text.split()})

    def __call__(self, array: Sizes, stacks: int) -> tuple[Axes, bool]:
        """The array's axes, with `"..."` for those that are not declared, and whether the user declared any.

        - `stacks`: the number of leading axes that are known to stack layers.
        """
        stack, whole = self.stacks(array.path), self.whole(array.path)
        words = tuple((stack or " ".join(["stack"] * stacks + ["..."])).split())
        at, left = words.index("..."), len(array.target) - len(words) + 1
        declared = tuple(whole.split()) if whole else None
        if declared is not None and len(declared) == len(array.target):
            found = declared
        elif left < 0 or (declared is not None and len(declared) != left):
            raise ValueError(
                f"`axes` declares `{array.path}` as {whole or stack!r}, but it has {len(array.target)} axes, of sizes "
                f"{array.target}."
            )
        else:
            found = (*words[:at], *(declared or ("...",)), *words[at + 1 :])
        return found, bool(stack or whole)

    def check_all_used(self) -> None:
        self.stacks.check_all_used()
        self.whole.check_all_used()


def by_layout(array: Sizes, rest: list[int], owner: Any, layout: str) -> Axes | None:
    """What axes with these indices hold, `None` for arrays without a fan-in. Raises `ValueError` if that is open."""
    ndim = len(rest)
    if isinstance(owner, (*_NORMS, *NORMED, eqx.nn.PReLU)) or ndim < 2 or _is_vector(path_parts(array.path)[-1]):
        return None
    if isinstance(owner, _OUT_FIRST):
        return _stacked(ndim, "out", "in")
    if isinstance(owner, eqx.nn.Embedding):
        return _stacked(ndim, "in", "out")
    if isinstance(owner, _CONVS):
        return _stacked(ndim, "out", "in", *["kernel"] * owner.num_spatial_dims)
    layout = _layout_of(owner) or layout
    wide = [array.wide[i] for i in rest]
    if ndim > 2 and any(wide) and (layout == "in_out" or not wide[0] or any(wide[2:])):
        raise array.ambiguous()
    pair = ("out", "in") if layout == "out_in" else ("in", "out")
    return (*pair, *["kernel"] * (ndim - 2))


def _stacked(ndim: int, *axes: str) -> Axes:
    return (*["stack"] * (ndim - len(axes)), *axes)


def _is_vector(name: str) -> bool:
    return "bias" in name or name in ("scale", "offset")


def complete(array: Sizes, axes: Axes, owner: Any, layout: str) -> Axes | None:
    """The axes with what the layout says about those that are not declared, `"..."`; `None` for other vectors."""
    if "..." not in axes:
        return axes
    at = axes.index("...")
    rest = list(range(at, at + len(array.target) - len(axes) + 1))
    words = by_layout(array, rest, owner, layout)
    if words is None:
        growing = [i for i in rest if array.wide[i]]
        if owner is None and len(rest) > 1 and (len(growing) > 1 or (array.absolute and growing)):
            raise ValueError(
                f"`{array.path}`, of shape {array.target}, has axes that may be heads or stacked layers; declare what "
                f"each axis holds, such as `axes={{{array.path!r}: {' '.join(['out'] * len(rest))!r}}}` for heads or "
                "'stack ...' for stacked layers."
            )
        words = ("out",) if len(rest) == 1 else None
    if words is None and rest:
        return None
    return (*axes[:at], *(words or ()), *axes[at + 1 :])


def declare(array: Sizes, axes: Axes | None, role: str | None) -> WidthSpec:
    """The declaration of an array whose axes are known; `None` for biases and normalization scales."""
    inputs, outputs, kernel = (indices(axes or (), word) for word in ("in", "out", "kernel"))
    if not inputs and not kernel and role not in (None, "vector"):
        raise ValueError(
            f"`roles` gives `{array.path}`, of shape {array.target}, the role {role!r}, but it has no fan-in; declare "
            f"its axes, such as `axes={{{array.path!r}: {' '.join(['in', 'out'][: len(array.target)])!r}}}`."
        )
    if role == "vector" or (not inputs and not kernel):
        stacked = indices(axes or (), "stack")
        growing = [i for i, wide in enumerate(array.wide) if wide and i not in stacked]
        if not outputs:
            _check_rates(array, [[i] for i in growing], role)
        return WidthSpec.vector(array.target, array.units(outputs or growing[-1:]))
    if any(array.wide[i] for i in kernel):
        raise ValueError(f"`axes` calls an axis of `{array.path}` 'kernel' that grows with the width; call it 'in'.")
    _check_rates(array, [inputs, outputs], role)
    kernel_size = math.prod(array.target[i] for i in kernel)
    spec = WidthSpec.weight(array.target, array.units(inputs), array.units(outputs), kernel_size=kernel_size)
    return spec if role is None else _overridden(spec, role)


def _check_rates(array: Sizes, sides: list[list[int]], role: str | None) -> None:
    if role is None and len({array.rate(side) for side in sides} - {None}) > 1:
        raise ValueError(
            f"`{array.path}` has axes that grow at different rates, from {array.base} to {array.delta}; declare its "
            f"role: `roles={{{array.path!r}: 'hidden'}}` (or 'input', 'output', 'vector')."
        )


def _overridden(spec: WidthSpec, role: str) -> WidthSpec:
    """The declaration with another role; multipliers of sides that do not grow in this role become 1."""
    return dataclasses.replace(
        spec,
        role="output" if role == "bottleneck" else role,
        fan_in_mult=spec.fan_in_mult if role in ("hidden", "output", "bottleneck") else 1.0,
        fan_out_mult=spec.fan_out_mult if role in ("hidden", "input") else 1.0,
        bottleneck=role == "bottleneck",
    )
