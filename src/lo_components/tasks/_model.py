"""The base of tasks that train a model: separates its parameters, and finds its widths and its parametrization."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._tree import check_build, check_has_arrays, path_name
from .._types import Params
from ..nn import declared_parametrization, declared_widths, named_layers
from ..parametrization import SP, Absorbed, AbstractParametrization, WidthSpec, check_widths, reinitialize
from ._base import AbstractTask, BatchT


class TrainedModel(eqx.Module):
    """A model to train: the function that builds it, its leaves except arrays, its widths and its parametrization."""

    rest: PyTree
    widths: PyTree[WidthSpec]
    parametrization: AbstractParametrization
    build: Callable[[PRNGKeyArray], Any]

    def __init__(
        self,
        build: Callable[[PRNGKeyArray], Any],
        parametrization: AbstractParametrization | None,
        widths: PyTree[WidthSpec] | None,
    ):
        """**Arguments:**

        - `build`, `parametrization`, `widths`: as in [`lo_components.tasks.ImageClassification`][].

        Raises `ValueError` if the model has no arrays, or some that cannot be trained or are not declared, or if its
        layers were built with another parametrization; `TypeError` if `build` is not a function or if the
        parametrization needs forward multipliers.
        """
        check_build(build, "lambda key: eqx.nn.MLP(64, 10, 32, 2, key=key)")
        shapes = eqx.filter_eval_shape(build, jax.random.key(0))
        self.build = build
        arrays, self.rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"`build` returns a model with an array of {leaf.dtype} at `{path_name(path)}`, which cannot be "
                    "trained; make it inside the model's `__call__`, or keep it as a tuple of numbers."
                )
        check_has_arrays(arrays, shapes)
        built_with = declared_parametrization(shapes)
        if widths is not None:
            if built_with is not None and not isinstance(built_with, SP):
                raise ValueError(
                    f"`build` returns layers that were built with {built_with}, which scales them already; "
                    "leave out `widths` and `parametrization`, or build them with `SP()`."
                )
            self.parametrization = _of_other_model(parametrization)
            self.widths = widths
        else:
            self.widths = declared_widths(shapes)
            if jax.tree.structure(self.widths) != jax.tree.structure(arrays):
                raise ValueError(
                    "`build` returns a model with arrays that no layer of `lo_components.nn` declares; pass `widths`, "
                    "for instance from `lo_components.parametrization.infer_widths`, and `parametrization`."
                )
            if parametrization is not None and built_with is not None and parametrization != built_with:
                raise ValueError(
                    f"`parametrization` is {parametrization}, but the model's layers were built with {built_with}; "
                    "leave it out."
                )
            found = parametrization if built_with is None else built_with
            if found is None:
                raise ValueError(
                    "Pass the `parametrization` that the layers were built with; it has arrays, or there is none."
                )
            self.parametrization = found
        check_widths(self.widths, arrays, self.parametrization)

    def init(self, *, key: PRNGKeyArray) -> Params:
        """The floating-point arrays of a new model."""
        if not isinstance(self.parametrization, Absorbed):
            return eqx.filter(self.build(key), eqx.is_inexact_array)
        build_key, key = jax.random.split(key)
        model = reinitialize(self.build(build_key), self.widths, self.parametrization, key=key)
        return eqx.filter(model, eqx.is_inexact_array)


def _of_other_model(parametrization: AbstractParametrization | None) -> AbstractParametrization:
    """The parametrization of a model that applies no forward multipliers."""
    if not isinstance(parametrization, SP | Absorbed):
        raise TypeError(
            "`parametrization` must be `Absorbed(MuP())` or `SP()` for a model with `widths`, whose code applies no "
            f"forward multipliers; got {parametrization}."
        )
    return parametrization


class AbstractModelTask(AbstractTask[BatchT]):
    """A task that trains a model, whose floating-point arrays are the parameters."""

    trained: eqx.AbstractVar[TrainedModel]

    @property
    def widths(self) -> PyTree[WidthSpec]:
        """A `WidthSpec` for each array of the parameters."""
        return self.trained.widths

    @property
    def parametrization(self) -> AbstractParametrization:
        """The model's parametrization."""
        return self.trained.parametrization

    def init(self, *, key: PRNGKeyArray) -> Params:
        """The floating-point arrays of a new model, built with `key`."""
        return self.trained.init(key=key)

    def model(self, params: Params) -> Any:
        """The model with these parameters.

        **Arguments:**

        - `params`: from `init`, or trained.
        """
        return named_layers(eqx.combine(params, self.trained.rest))


def over_split(values: Callable[[Int[Array, " batch"]], PyTree], count: int, batch_size: int) -> PyTree:
    """The values of all `count` examples of a split, of which `values` maps the indices of a batch to those of each.

    Batches are computed one after the other; the last one repeats an example, of which the additional values are left
    out.
    """
    index = jnp.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size)
    found = jax.lax.map(values, jnp.minimum(index, count - 1))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
