"""What tasks share whose optimizee is a model: parameters apart from the rest, update scales, names of layers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._tree import path_name
from .._types import Params, Scales
from ..nn import declared_widths, named_layers
from ..parametrization import AbstractParametrization, WidthSpec, check_widths
from ._base import AbstractTask, BatchT


class Optimizee(eqx.Module):
    """A model to train: how to build it, everything of it but its arrays, and its update scales.

    Tasks hold one and offer its parts.
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
        arrays, self.rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"`build` returns a model with an array of {leaf.dtype} at `{path_name(path)}`, which is not to be "
                    "trained; make it inside the model's `__call__`, or keep it as a tuple of numbers."
                )
        if widths is None:
            widths = declared_widths(shapes)
            if jax.tree.structure(widths) != jax.tree.structure(arrays):
                raise ValueError(
                    "`build` returns a model with arrays that no layer of `lo_components.nn` declares; pass `widths`, "
                    "for instance from `lo_components.parametrization.infer_widths`."
                )
        check_widths(widths, arrays)
        self.update_scales = parametrization.update_scales(widths)


class AbstractModelTask(AbstractTask[BatchT]):
    """A task whose optimizee is a model: its floating-point arrays are parameters, its widths give update scales."""

    optimizee: eqx.AbstractVar[Optimizee]

    @property
    def update_scales(self) -> Scales | None:
        """One float per array, from the parametrization and the model's widths."""
        return self.optimizee.update_scales

    def init(self, *, key: PRNGKeyArray) -> Params:
        """The floating-point arrays of a newly built model."""
        return eqx.filter(self.optimizee.build(key), eqx.is_inexact_array)

    def model(self, params: Params) -> Any:
        """The model with these parameters."""
        return named_layers(eqx.combine(params, self.optimizee.rest))
