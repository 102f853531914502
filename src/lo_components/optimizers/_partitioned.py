from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .._tree import leaf_name
from .._types import Params, typechecked
from ..parametrization import UpdateRule
from ._base import AbstractOptimizer, StepContext, checked_update
from ._optax import as_optimizer


class Matrices(eqx.Module):
    """Selects tensors of rank 2 and more, except those whose path contains one of some words.

    **Arguments:**

    - `except_names`: the words; upper and lower case count as different.
    """

    except_names: tuple[str, ...] = eqx.field(default=("embed",), static=True)

    def __call__(self, path: str, param: Params) -> bool:
        """Whether a tensor is selected.

        **Arguments:**

        - `path`: its names in the tree, joined by `/`.
        - `param`: the tensor.
        """
        return np.ndim(param) >= 2 and not any(name in path for name in self.except_names)


class Named(eqx.Module):
    """Selects tensors by their paths.

    **Arguments:**

    - `paths`: their names in the tree, joined by `/`.
    """

    paths: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, path: str, param: Params) -> bool:
        """Whether a tensor is selected.

        **Arguments:**

        - `path`: its names in the tree, joined by `/`.
        - `param`: the tensor.
        """
        return path in self.paths


class PartitionedState(NamedTuple):
    """State of a [`lo_components.optimizers.Partitioned`][] optimizer.

    **Arguments:**

    - `selected`, `rest`: the states of the two optimizers, whose trees leave out each other's tensors.
    """

    selected: Any
    rest: Any


class Partitioned(AbstractOptimizer[PartitionedState]):
    """One optimizer for some tensors, another one for the rest: Celo2 and Muon leave vectors and embeddings to AdamW.

    **Arguments:**

    - `optimizer`: for the selected tensors.
    - `rest`: for all others.
    - `select`: which tensors, by path and shape, such as [`lo_components.optimizers.Matrices`][].

    `init` and `update` raise `ValueError` if `select` names a path that the parameters do not have.
    """

    optimizer: AbstractOptimizer = eqx.field(converter=as_optimizer)
    rest: AbstractOptimizer = eqx.field(converter=as_optimizer)
    select: Matrices | Named = Matrices()

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        ((selected, rest),) = self._split(params, params)
        return _merged(self.optimizer.update_rules(selected), self.rest.update_rules(rest))

    @typechecked
    def init(self, params: Params) -> PartitionedState:
        ((selected, rest),) = self._split(params, params)
        return PartitionedState(self.optimizer.init(selected), self.rest.init(rest))

    @checked_update
    def update(
        self, grads: Params, state: PartitionedState, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, PartitionedState]:
        halves, (grads, other_grads) = self._split(params, params, grads)
        selected, rest = state
        first, selected = self.optimizer.update(grads, selected, halves[0], context=_beside(context, halves[1]))
        second, rest = self.rest.update(other_grads, rest, halves[1], context=_beside(context, halves[0]))
        return _merged(first, second), PartitionedState(selected, rest)

    def _split(self, params: Params, *trees: PyTree) -> list[tuple[PyTree, PyTree]]:
        """The selected leaves of each tree, and the others, with `None` in place of those that are left out."""
        if isinstance(self.select, Named):
            names = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
            if missing := [path for path in self.select.paths if path not in names]:
                raise ValueError(f"`select` names `{missing[0]}`, but there are only {', '.join(sorted(names))}.")
        mask = jax.tree_util.tree_map_with_path(lambda path, p: self.select(leaf_name(path), p), params)
        return [eqx.partition(tree, mask) for tree in trees]


def _beside(context: StepContext, others: PyTree) -> StepContext:
    """The context of one part, whose function of the loss takes the other part as it is."""
    loss_fn = context.loss_fn
    if loss_fn is None:
        return context
    return StepContext(context.loss, context.num_steps, lambda part: loss_fn(_merged(part, others)))


def _merged(first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)
