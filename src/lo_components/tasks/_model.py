"""What tasks share whose optimizee is a model: parameters apart from the rest, update scales, names of layers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._types import Params, Scales
from ..nn import declared_widths, named_layers
from ..parametrization import AbstractParametrization, WidthSpec


class Optimizee(eqx.Module):
    """A model to train: how to build it, everything of it but its arrays, and its update scales.

    Private to this package: tasks hold one and offer its parts.
    """

    rest: PyTree
    update_scales: Scales | None
    build: Callable[[PRNGKeyArray], Any] = eqx.field(static=True)

    def __init__(
        self,
        build: Callable[[PRNGKeyArray], Any],
        parametrization: AbstractParametrization,
        widths: PyTree[WidthSpec] | None,
    ):
        shapes = eqx.filter_eval_shape(build, jax.random.key(0))
        self.build = build
        self.rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))[1]
        expected = jax.tree.structure(eqx.filter(shapes, _is_shape))
        if widths is None:
            widths = declared_widths(shapes)
            if jax.tree.structure(widths) != expected:
                raise ValueError(
                    "`build` returns a model with arrays that no layer of `lo_components.nn` declares; pass `widths`, "
                    "for instance from `lo_components.parametrization.infer_widths`."
                )
        elif jax.tree.structure(widths) != expected:
            raise ValueError("`widths` must have one `WidthSpec` per floating-point array of the model, like it.")
        self.update_scales = parametrization.update_scales(widths)

    def init(self, key: PRNGKeyArray) -> Params:
        return eqx.filter(self.build(key), eqx.is_inexact_array)

    def model(self, params: Params) -> Any:
        """The model with these parameters."""
        return named_layers(eqx.combine(params, self.rest))


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
