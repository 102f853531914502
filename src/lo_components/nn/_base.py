"""Layers that declare how their arrays grow with the width, and what a model made of them declares."""

import abc

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..parametrization import AbstractParametrization, WidthSpec


class AbstractLayer(eqx.Module):
    """A layer that declares how each of its arrays grows with the model's width."""

    @abc.abstractmethod
    def declared(self) -> PyTree:
        """The layer with a [`lo_components.parametrization.WidthSpec`][] in place of each array."""


class AbstractWeightLayer(AbstractLayer):
    """A layer whose weight gets its initial values, multiplier and update scale from its `parametrization`."""

    parametrization: eqx.AbstractVar[AbstractParametrization | None]


def declared_widths(model: PyTree) -> PyTree[WidthSpec]:
    """The `WidthSpec` of every array of a model built from the layers of this package.

    For other models see [`lo_components.parametrization.infer_widths`][].

    **Arguments:**

    - `model`: any pytree of layers.

    **Returns:** the structure of `equinox.filter(model, equinox.is_inexact_array)` with a `WidthSpec` in place of each
    array.
    """

    def declare(node):
        node = node.declared() if _is_layer(node) else node
        return eqx.filter(node, lambda leaf: isinstance(leaf, WidthSpec))

    return jax.tree.map(declare, model, is_leaf=_is_layer)


def declared_parametrization(model: PyTree) -> AbstractParametrization | None:
    """The parametrization that a model's layers were built with; `None` if no layer is from this package.

    **Arguments:**

    - `model`: any pytree of layers.

    Raises `ValueError` if layers were built with different parametrizations.
    """
    layers = [x for x in jax.tree.leaves(model, is_leaf=_is_weight_layer) if _is_weight_layer(x)]
    found = {layer.parametrization for layer in layers} - {None}
    if len(found) > 1:
        raise ValueError(f"The model's layers were built with different parametrizations: {found}.")
    return next(iter(found), None)


def _is_weight_layer(node) -> bool:
    return isinstance(node, AbstractWeightLayer)


def _is_layer(node) -> bool:
    return isinstance(node, AbstractLayer)
