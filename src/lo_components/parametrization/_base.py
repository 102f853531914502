import abc
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._tree import concrete, structure_difference
from .._types import Scales, brief, path_name
from ._rule import UNSCALED, UpdateRule, every_leaf
from ._width import Axis, WidthSpec


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
