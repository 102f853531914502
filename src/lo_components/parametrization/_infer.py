import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._tree import path_name
from .._types import typechecked
from ._base import Axis, Role, WidthSpec


@dataclasses.dataclass(frozen=True)
class _Sides:
    """The axes of an array that hold its layer's outputs, inputs and kernel, as negative numbers."""

    out: int
    fan_in: int
    kernel: tuple[int, ...] = ()


@typechecked
def infer_widths(
    build: Callable[[int], Any],
    base: int,
    delta: int,
    target: int,
    *,
    layout: Literal["out_in", "in_out"] = "out_in",
    roles: Mapping[str, str] | None = None,
    absolute: bool = False,
) -> PyTree[WidthSpec]:
    """Infer how each array of a model grows with its width, from shapes at three widths. Allocates nothing.

    An axis is wide if its size differs between `build(base)` and `build(delta)`. An array with wide inputs and outputs
    is `"hidden"`, with only wide outputs `"input"`, with only wide inputs `"output"`; biases, normalization scales and
    arrays without a wide axis are `"vector"`. The Equinox layer that owns an array tells inputs from outputs: `Linear`,
    `Conv`, `ConvTranspose` and recurrent cells have outputs first, `Embedding` has inputs first. Your own layers can
    set the class attribute `layout`. For all other arrays the argument `layout` decides. Leading axes that stack
    Equinox layers for a scan are ignored.

    **Arguments:**

    - `build`: maps a width to a model, an Equinox module or any pytree.
    - `base`: the width at which all multipliers are 1.
    - `delta`: any other width, for comparison with `base`.
    - `target`: the width of the model to declare.
    - `layout`: the order of axes of all other arrays: `"out_in"`, `[out, in, *kernel]` as in Equinox and PyTorch, or
        `"in_out"`, `[*kernel, in, out]` as in Flax and Haiku.
    - `roles`: overrides by path, such as `{"readout/weight": "output"}`; `*` matches any characters.
    - `absolute`: whether multipliers are the fan-in and fan-out themselves (the papers' convention); then `base` only
        tells which axes grow.

    **Returns:** the structure of `equinox.filter(build(target), equinox.is_inexact_array)`, with a
    [`lo_components.parametrization.WidthSpec`][] in place of each array.

    Raises `ValueError` if widths are invalid or equal, if `roles` does not fit the model, or if an array is ambiguous:
    one with axes that grow at different rates, one used in two places (tied weights), or one of rank 3 or more, outside
    of Equinox layers, that grows along a kernel axis.
    """
    if base == delta or min(base, delta, target) < 1:
        raise ValueError(
            f"`base` and `delta` must differ and all widths be at least 1, got base={base}, delta={delta} and "
            f"target={target}."
        )
    overrides = _Overrides(dict(roles or {}))
    models = [_Shapes(build, size) for size in (base, delta, target)]
    paths = models[2].arrays.keys()
    for model, name in zip(models, ("base", "delta"), strict=False):
        if model.arrays.keys() != paths:
            raise ValueError(
                f"`build` returns different arrays at `{name}` and at `target`: "
                f"{', '.join(sorted(model.arrays.keys() ^ paths))} is not in both."
            )
    specs = {}
    for path in paths:
        shapes = [model.arrays[path] for model in models]
        role = overrides.role(path)
        if role is None and path in models[2].tied:
            raise ValueError(
                f"`{path}` is one array with {models[2].tied[path]} (tied weights), so it plays two roles. Declare it "
                f"as `roles={{{path!r}: 'input'}}`, and divide the logits by the width multiplier in the model."
            )
        specs[path] = _declare(path, shapes, models[2].owners[path], layout, role, absolute)
    overrides.check_all_used()
    return models[2].replace(specs)


class _Shapes:
    """A model's array shapes by path, the layers that own them, and the arrays that occur twice."""

    def __init__(self, build: Callable[[int], Any], size: int):
        self.tied: dict[str, str] = {}

        def traced():
            model = build(size)
            first: dict[int, str] = {}
            for path, leaf in jax.tree_util.tree_leaves_with_path(model):
                if eqx.is_inexact_array(leaf):
                    name = path_name(path)
                    other = first.setdefault(id(leaf), name)
                    if other != name:
                        self.tied[name], self.tied[other] = f"`{other}`", f"`{name}`"
            shared = [x for x in jax.tree.leaves(model, is_leaf=_is_shared) if _is_shared(x)]
            for leaf in jax.tree.leaves([node.get(node.pytree) for node in shared]):
                if eqx.is_inexact_array(leaf):
                    self.tied[first[id(leaf)]] = "another place, by `equinox.nn.Shared`"
            return model

        shapes = eqx.filter_eval_shape(traced)
        self.model = eqx.filter(shapes, _is_inexact_shape)
        self.arrays = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(self.model)}
        self.owners: dict[str, Any] = dict.fromkeys(self.arrays)
        self._find_owners(shapes)

    def _find_owners(self, model: PyTree) -> None:
        for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_known_layer):
            if not _is_known_layer(node):
                continue
            layer = path_name(path)
            for inner, _ in jax.tree_util.tree_leaves_with_path(eqx.filter(node, _is_inexact_shape)):
                self.owners["/".join(filter(None, [layer, path_name(inner)]))] = node

    def replace(self, specs: dict[str, WidthSpec]) -> PyTree[WidthSpec]:
        return jax.tree_util.tree_map_with_path(lambda path, _: specs[path_name(path)], self.model)


class _Overrides:
    """The roles given by the user, by path pattern."""

    def __init__(self, roles: dict[str, str]):
        self.roles = roles
        self.unused = set(roles)

    def role(self, path: str) -> str | None:
        found = [pattern for pattern in self.roles if fnmatch.fnmatchcase(path, pattern)]
        self.unused -= set(found)
        if len({self.roles[pattern] for pattern in found}) > 1:
            raise ValueError(f"`roles` gives `{path}` several roles: by {', '.join(map(repr, found))}.")
        return self.roles[found[0]] if found else None

    def check_all_used(self) -> None:
        if self.unused:
            raise ValueError(f"`roles` names arrays that the model does not have: {', '.join(sorted(self.unused))}.")


_NORMS = (eqx.nn.LayerNorm, eqx.nn.GroupNorm, eqx.nn.RMSNorm, eqx.nn.BatchNorm)
_OUT_FIRST = (eqx.nn.Linear, eqx.nn.GRUCell, eqx.nn.LSTMCell)
_CONVS = (eqx.nn.Conv, eqx.nn.ConvTranspose)
_KNOWN = (*_NORMS, *_OUT_FIRST, *_CONVS, eqx.nn.Embedding, eqx.nn.PReLU)


def _is_known_layer(node: Any) -> bool:
    return isinstance(node, _KNOWN) or (isinstance(node, eqx.Module) and _layout_of(node) is not None)


def _is_shared(node: Any) -> bool:
    return isinstance(node, eqx.nn.Shared)


def _layout_of(owner: Any) -> str | None:
    """The `layout` that a user's layer declares."""
    layout = vars(type(owner)).get("layout")
    return layout if layout in ("out_in", "in_out") else None


def _is_inexact_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def _sides(path: str, owner: Any, ndim: int, layout: str, wide: list[bool]) -> _Sides | None:
    """`None` for arrays without a fan-in."""
    name = path.rsplit("/", 1)[-1]
    if isinstance(owner, (*_NORMS, eqx.nn.PReLU)) or ndim < 2 or "bias" in name:
        return None
    if isinstance(owner, _OUT_FIRST):
        return _Sides(-2, -1)
    if isinstance(owner, eqx.nn.Embedding):
        return _Sides(-1, -2)
    if isinstance(owner, _CONVS):
        spatial = owner.num_spatial_dims
        return _Sides(-2 - spatial, -1 - spatial, tuple(range(-spatial, 0)))
    layout = _layout_of(owner) or layout
    if layout == "out_in":
        sides = _Sides(-ndim, 1 - ndim, tuple(range(2 - ndim, 0)))
    else:
        sides = _Sides(-1, -2, tuple(range(-ndim, -2)))
    if any(wide[axis] for axis in sides.kernel):
        raise ValueError(
            f"`{path}` grows on axes {[i for i, w in enumerate(wide) if w]} of {ndim}, and is in no Equinox "
            "layer, so its fan-in is ambiguous; reshape it to a matrix in `build`, or use an Equinox layer."
        )
    return sides


def _declare(path: str, shapes: list, owner: Any, layout: str, role: str | None, absolute: bool) -> WidthSpec:
    base, delta, target = shapes
    if not len(base) == len(delta) == len(target):
        raise ValueError(f"`{path}` has different numbers of axes at different widths: {base}, {delta}, {target}.")
    wide = [b != d for b, d in zip(base, delta, strict=True)]
    frozen = [i for i, w in enumerate(wide) if not w and base[i] != target[i]]
    if frozen:
        raise ValueError(
            f"`{path}` has shapes {base} and {delta} at `base` and `delta`, but {target} at `target`; choose another "
            "`delta`, at which every axis that grows differs from `base`."
        )
    rates = {d / b for b, d, w in zip(base, delta, wide, strict=True) if w}
    if len(rates) > 1 and role is None:
        raise ValueError(
            f"`{path}` has axes that grow at different rates, from {base} to {delta}; declare its role: "
            f"`roles={{{path!r}: 'hidden'}}` (or 'input', 'output', 'vector')."
        )
    sides = None if role == "vector" else _sides(path, owner, len(target), layout, wide)

    def axis(i: int) -> Axis:
        if not wide[i]:
            return Axis.fixed(target[i])
        return Axis.growing(target[i], None if absolute else base[i])

    if sides is None:
        if role not in (None, "vector"):
            raise ValueError(f"`roles` gives `{path}`, of shape {target}, the role {role!r}, but it has no fan-in.")
        growing = [i for i, w in enumerate(wide) if w]
        return WidthSpec.vector(target, axis(growing[-1]) if growing else Axis.fixed(1))
    if (role == "output" and not wide[sides.fan_in]) or (role == "input" and not wide[sides.out]):
        sides = _Sides(sides.fan_in, sides.out, sides.kernel)
    kernel_size = math.prod(target[i] for i in sides.kernel)
    spec = WidthSpec.weight(target, axis(sides.fan_in), axis(sides.out), kernel_size=kernel_size)
    return spec if role is None else _overridden(path, spec, role)


def _overridden(path: str, spec: WidthSpec, role: str) -> WidthSpec:
    """The declaration with another role; multipliers of sides that do not grow in this role become 1."""
    if role not in ("input", "hidden", "output"):
        raise ValueError(f"`roles` gives `{path}` the role {role!r}; expected 'input', 'hidden', 'output' or 'vector'.")
    checked: Role = role
    return dataclasses.replace(
        spec,
        role=checked,
        fan_in_mult=spec.fan_in_mult if role in ("hidden", "output") else 1.0,
        fan_out_mult=spec.fan_out_mult if role in ("hidden", "input") else 1.0,
    )
