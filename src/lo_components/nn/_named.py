from typing import Any

import equinox as eqx
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from .._tree import path_name
from ._layers import Conv, Embedding, Linear

# Layers whose outputs are pre-activations.
_LAYERS = (Linear, Conv, Embedding, eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Embedding)


class _Named(eqx.Module):
    """A layer whose output carries a name. All attributes are forwarded to the layer."""

    _layer: Any
    _name: str = eqx.field(static=True)

    def __call__(self, *args, **kwargs):
        return jax.tree.map(lambda x: checkpoint_name(x, self._name), self._layer(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._layer, name)


def named_layers(model: PyTree) -> PyTree:
    """A copy of a model that names the output of each layer by its path, such as `blocks/0/attention/query`.

    [`lo_components.meta.coordinate_check`][] finds pre-activations by these names, which are those of
    `jax.ad_checkpoint.checkpoint_name` and cost nothing at run time. Layers are the `Linear`, `Conv` and `Embedding` of
    this package and of Equinox, and Equinox's `ConvTranspose`. Name other values with `checkpoint_name`.

    **Arguments:**

    - `model`: an Equinox model, or any pytree of layers.
    """

    def is_layer(node: Any) -> bool:
        return isinstance(node, (*_LAYERS, _Named))

    def name(path, node):
        return _Named(node, path_name(path)) if isinstance(node, _LAYERS) else node

    return jax.tree_util.tree_map_with_path(name, model, is_leaf=is_layer)
