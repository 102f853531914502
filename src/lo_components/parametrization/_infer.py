import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._tree import check_build, check_has_arrays, path_name
from .._types import typechecked
from ._axes import NORMED, ROLES, Axes, ByPath, DeclaredAxes, Sizes, complete, declare, indices, is_known_layer
from ._base import inner_projections
from ._width import WidthSpec


@typechecked
def infer_widths(
    build: Callable[[int], Any] | object,
    base: int,
    delta: int,
    target: int,
    *,
    layout: Literal["out_in", "in_out"] = "out_in",
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    absolute: bool = False,
) -> PyTree[WidthSpec]:
    """Infer how each array of a model grows with its width, from shapes at three widths. Allocates nothing.

    An axis is wide if its size differs between `build(base)` and `build(delta)`. An array with wide inputs and outputs
    is `"hidden"`, with only wide outputs `"input"`, with only wide inputs `"output"`; biases, normalization scales and
    arrays without a wide axis are `"vector"`.

    Which axes of an array are inputs and which are outputs follows, in this order, from `axes`; from the Equinox layer
    that owns it (`Linear`, `Conv`, `ConvTranspose` and recurrent cells have outputs first, `Embedding` has inputs
    first, and leading axes that stack layers for a scan are ignored); from the class attribute `layout` of your own
    layer; from the argument `layout`. Arrays called `bias`, `scale` or `offset` are vectors. In Haiku's `layer_stack`
    the first axis stacks layers. Elsewhere, shapes do not tell a stack of layers from the kernel of a convolution or
    from the heads of an attention, so arrays of rank 3 and more must be declared.

    An `"output"` array that is followed by further layers, such as the keys of an attention with a fixed number of
    heads, is a bottleneck, and does not start at zero. If several arrays could be the readout, all are declared as
    bottlenecks. A warning names them.

    **Arguments:**

    - `build`: maps a width to a model, an Equinox module or any pytree.
    - `base`: the width at which all multipliers are 1.
    - `delta`: any other width, for comparison with `base`.
    - `target`: the width of the model to declare.
    - `layout`: the order of axes of all other arrays: `"out_in"`, `[out, in, *kernel]` as in Equinox and PyTorch, or
        `"in_out"`, `[in, out]` as in Flax and Haiku.
    - `axes`: what each axis holds, by path: `"in"`, `"out"`, `"kernel"` (positions of a convolution) or `"stack"`
        (layers). `{"*query/kernel": "in out out"}` declares a kernel `[width, heads, head]`, and `{"layers/*": "stack
        ..."}` arrays whose first axis stacks layers, and whose other axes are declared by another entry or by `layout`.
        In paths, `*` matches any characters, so that `*/kernel` matches at any depth.
    - `roles`: overrides by path, such as `{"readout/weight": "output"}`: `"input"`, `"hidden"`, `"output"` (the
        readout), `"bottleneck"` (an output array that is not the readout) or `"vector"`.
    - `absolute`: whether multipliers are the fan-in and fan-out themselves (the papers' convention); then `base` only
        tells which axes grow.

    **Returns:** the structure of `equinox.filter(build(target), equinox.is_inexact_array)`, with a
    [`lo_components.parametrization.WidthSpec`][] in place of each array.

    Raises `TypeError` if `build` is not a function, and `ValueError` if widths are invalid or equal, if `build`
    returns no arrays or does not depend on the width, if `axes` or `roles` do not fit the model, or if an array is
    ambiguous: one with axes that grow at different rates, one used in two places (tied weights), or one that must be
    declared by `axes`. Raises `ValueError` for a `WeightNorm` or `SpectralNorm` around a readout.

    **Example:**

    ```pycon
    >>> build = lambda width: eqx.nn.MLP(64, 10, width_size=width, depth=2, key=jax.random.key(0))
    >>> widths = loc.parametrization.infer_widths(build, base=32, delta=64, target=128)
    >>> [layer.weight.role for layer in widths.layers]
    ['input', 'hidden', 'output']
    ```
    """
    if base == delta or min(base, delta, target) < 1:
        raise ValueError(
            f"`base` and `delta` must differ and all widths be at least 1, got base={base}, delta={delta} and "
            f"target={target}."
        )
    axes_of, role_of = DeclaredAxes(axes or {}), ByPath("roles", roles or {})
    for path, role in role_of.values.items():
        if role not in ROLES:
            raise ValueError(
                f"`roles` gives `{path}` the role {role!r}; expected one of {', '.join(map(repr, ROLES))}."
            )
    models = [_Shapes(build, size) for size in (base, delta, target)]
    arrays = _arrays(models, absolute)
    model, stacks = models[2], _haiku_stacks(arrays)
    specs, stacked, by_layout = {}, {}, []
    for path, array in arrays.items():
        role, owner = role_of(path), model.owners[path]
        if role is None and path in model.tied:
            raise ValueError(
                f"`{path}` is one array with {model.tied[path]} (tied weights), so it plays two roles. Declare it "
                f"as `roles={{{path!r}: 'input'}}`, and divide the logits by the width multiplier in the model."
            )
        found, by_user = axes_of(array, stacks.get(path, 0))
        if not by_user and owner is None and path not in stacks:
            by_layout.append(path)
        found = complete(array, found, owner, layout) if role != "vector" or by_user else None
        stacked |= {(i, array.target[i]): path for i in indices(found or (), "stack")}
        if role is not None and not by_user:
            found = _turned(array, found, role)
        specs[path] = dataclasses.replace(declare(array, found, role), inferred=path not in model.multiplied)
    axes_of.check_all_used()
    role_of.check_all_used()
    for path in by_layout:
        fixed = [(i, arrays[path].target[i]) for i, wide in enumerate(arrays[path].wide) if not wide]
        if specs[path].fan_in is not None and (others := [stacked[axis] for axis in fixed if axis in stacked]):
            raise ValueError(
                f"`{path}`, of shape {arrays[path].target}, may be stacked like `{others[0]}`; declare its axes as "
                f"well, as `axes={{{path!r}: 'stack ...'}}` if it is, and as 'in out' or 'out in' if not."
            )
    model.check_normed_weights(specs)
    return model.replace(_with_bottlenecks(specs, role_of))


def _arrays(models: list["_Shapes"], absolute: bool) -> dict[str, Sizes]:
    """The shapes of each array at the three widths, by path."""
    paths = models[2].arrays.keys()
    for model, name in zip(models, ("base", "delta"), strict=False):
        if different := sorted(model.arrays.keys() ^ paths):
            others = f" (and {len(different) - 1} more)" if different[1:] else ""
            raise ValueError(
                f"`build` returns different arrays at `{name}` and at `target`: `{different[0]}`{others} is not in "
                "both."
            )
    at_base, at_delta, at_target = (model.arrays for model in models)
    arrays = {path: Sizes(path, at_base[path], at_delta[path], at_target[path], absolute) for path in paths}
    for array in arrays.values():
        array.check()
    if at_base == at_delta:
        raise ValueError(
            "`build` returns arrays of the same shapes at `base` and at `delta`, so nothing grows; it must use its "
            "argument as the model's width, as in `lambda width: eqx.nn.MLP(64, 10, width, 2, key=key)`."
        )
    return arrays


def _haiku_stacks(arrays: dict[str, Sizes]) -> dict[str, int]:
    """The number of leading axes that stack layers, for the arrays in Haiku's `layer_stack`."""
    stacks, sizes = {}, {}
    for path, array in arrays.items():
        parts = path.split("/")
        levels = [i for i, part in enumerate(parts) if part.startswith("__layer_stack")]
        if levels:
            stacks[path] = len(levels)
            size = array.target[: len(levels)]
            same = sizes.setdefault(tuple(parts[: levels[-1] + 1]), size)
            if len(size) < len(levels) or size != same or any(array.wide[: len(levels)]):
                raise ValueError(
                    f"`{path}`, of shape {array.target}, is in a `layer_stack`, but its first axis does not stack the "
                    "layers; give the module another name."
                )
    return stacks


def _turned(array: Sizes, axes: Axes | None, role: str) -> Axes | None:
    """The axes with inputs and outputs exchanged if only the other ones grow as `role` says."""
    grows = {word for word, wide in zip(axes or (), array.wide, strict=False) if wide}
    if (role in ("output", "bottleneck") and "in" not in grows) or (role == "input" and "out" not in grows):
        return axes and tuple({"in": "out", "out": "in"}.get(word, word) for word in axes)
    return axes


def _with_bottlenecks(specs: dict[str, WidthSpec], role_of: ByPath) -> dict[str, WidthSpec]:
    """The declarations with all but the readout, if it is known, declared as bottlenecks. Warns if there are any."""
    outputs = [path for path, spec in specs.items() if spec.role == "output"]
    undeclared = [path for path in outputs if role_of(path) is None]
    weights = [path for path, spec in specs.items() if spec.fan_in is not None]
    within = inner_projections(weights) & set(undeclared)
    if len(undeclared) - len(within) > 1 or any(role_of(path) == "output" for path in outputs):
        within = set(undeclared)
    if not within:
        return specs
    patterns = sorted({"/".join("*" if part.isdigit() else part for part in path.split("/")) for path in within})
    names = ", ".join(f"`{pattern}`" for pattern in patterns[:6]) + (", ..." if patterns[6:] else "")
    warnings.warn(
        f"{names}: the inputs grow and the outputs do not, as in a readout. To be safe they do not start at zero. "
        "Declare the readout as 'output' and the others as 'bottleneck' in `roles`.",
        stacklevel=2,
    )
    return {
        path: dataclasses.replace(spec, bottleneck=True) if path in within else spec for path, spec in specs.items()
    }


class _Shapes:
    """A model's array shapes by path, the layers that own them, and the arrays that occur twice."""

    def __init__(self, build: Any, size: int):
        check_build(build, "lambda width: eqx.nn.MLP(64, 10, width, 2, key=key)")
        self.tied: dict[str, str] = {}
        self.multiplied: set[str] = set()  # in layers of this package, which apply forward multipliers

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
        check_has_arrays(self.model, shapes)
        self.arrays = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(self.model)}
        self.owners: dict[str, Any] = dict.fromkeys(self.arrays)
        self.normed: dict[str, Any] = {}
        self._find_owners(shapes, lambda node: isinstance(node, NORMED))
        self._find_owners(shapes, is_known_layer)
        applies = lambda node: hasattr(node, "multiplier")  # noqa: E731
        for path, node in jax.tree_util.tree_leaves_with_path(shapes, is_leaf=applies):
            if applies(node):
                inner = jax.tree_util.tree_leaves_with_path(eqx.filter(node, _is_inexact_shape))
                self.multiplied |= {path_name((*path, *rest)) for rest, _ in inner}

    def _find_owners(self, model: PyTree, is_owner: Callable[[Any], bool]) -> None:
        for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_owner):
            if not is_owner(node):
                continue
            layer = path_name(path)
            for inner, _ in jax.tree_util.tree_leaves_with_path(eqx.filter(node, _is_inexact_shape)):
                self.owners["/".join(filter(None, [layer, path_name(inner)]))] = node
            if isinstance(node, NORMED):
                self.normed["/".join(filter(None, [layer, "layer", node.weight_name]))] = node

    def check_normed_weights(self, specs: dict[str, WidthSpec]) -> None:
        """Raise `ValueError` if a weight is divided by its norm and has a role in which this does not work."""
        for path, spec in specs.items():
            node, flax_scale = self.normed.get(path), f"/{'/'.join(path.split('/')[-2:])}/scale"
            if node is None and not any(other.endswith(flax_scale) for other in specs):
                continue
            is_spectral = isinstance(node, eqx.nn.SpectralNorm)
            kind = "SpectralNorm" if is_spectral else "WeightNorm"
            if getattr(node, "axis", 0) != 0:
                raise ValueError(
                    f"`{path}` is normalized by a `WeightNorm` along another axis than its outputs, for which muP has "
                    "no scales; use `axis=0`."
                )
            if spec.role == "output" or (spec.role == "input" and is_spectral):
                raise ValueError(
                    f"`{path}`, of role {spec.role!r}, is normalized by a `{kind}`, so its size is not that of its "
                    f"initial values, as muP requires; use the layer without `{kind}` there."
                )

    def replace(self, specs: dict[str, WidthSpec]) -> PyTree[WidthSpec]:
        return jax.tree_util.tree_map_with_path(lambda path, _: specs[path_name(path)], self.model)


def _is_shared(node: Any) -> bool:
    return isinstance(node, eqx.nn.Shared)


def _is_inexact_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
