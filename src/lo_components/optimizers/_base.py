import abc
import functools
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._tree import path_name
from .._types import Params, typechecked
from ..parametrization import UpdateRule

StateT = TypeVar("StateT")


class StepContext(eqx.Module):
    """Everything optional that an update may use. A new field here never breaks an optimizer.

    **Arguments:**

    - `loss`: the loss whose gradient is given.
    - `num_steps`: the length of training, in steps (or rounds).

    Both may be Python, NumPy or JAX scalars.
    """

    loss: float | Float[Array | np.ndarray, ""] | np.floating | None = None
    num_steps: int | Int[Array | np.ndarray, ""] | np.integer | None = None

    def loss_array(self) -> Float[Array, ""] | None:
        """`loss` as a float32 array."""
        return None if self.loss is None else jnp.asarray(self.loss, jnp.float32)

    def num_steps_array(self) -> Int[Array, ""] | None:
        """`num_steps` as an int32 array."""
        return None if self.num_steps is None else jnp.asarray(self.num_steps, jnp.int32)


class AbstractOptimizer(eqx.Module, Generic[StateT]):
    """An optimizer is its meta-parameters: its array leaves are meta-learned, its Python numbers are constants, and so
    are arrays wrapped as [`lo_components.Constant`][].

    State never contains the parameters. The update has optax's sign: it is *added* to the parameters, and has their
    structure, shapes and dtypes.
    """

    @abc.abstractmethod
    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """How the size of each array's update depends on its gradient; parametrizations scale updates accordingly.

        **Arguments:**

        - `params`: a pytree of floating-point arrays, of which only structure and shapes count.

        **Returns:** an [`lo_components.parametrization.UpdateRule`][] for each leaf of `params`.
        """

    @abc.abstractmethod
    def init(self, params: Params) -> StateT:
        """The state before the first step, for parameters like `params`."""

    @abc.abstractmethod
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        """The update to add to `params`, and the next state."""


def cast_like(updates: Params, params: Params) -> Params:
    """`updates` in the dtypes of `params`, which optax leaves to its transformations."""
    return jax.tree.map(lambda u, p: u.astype(jnp.asarray(p).dtype), updates, params)


def checked_update(update):
    """Check the arguments of an `update` method: `grads` against `params` first, so that the message names `grads`."""
    typed = typechecked(update)

    @functools.wraps(update)
    def checked(self, grads, state, params, *, context: StepContext = StepContext()):
        _refuse_unlike(grads, params)
        return typed(self, grads, state, params, context=context)

    return checked


def _refuse_unlike(grads: Any, params: Any) -> None:
    structures = jax.tree.structure(grads), jax.tree.structure(params)
    if structures[0] != structures[1]:
        raise ValueError(f"`grads` must have the structure of `params`: got {structures[0]}, expected {structures[1]}.")
    for (path, grad), param in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if np.shape(grad) != np.shape(param):
            raise ValueError(
                f"`grads` must have the shapes of `params`: at `{path_name(path)}` got {np.shape(grad)}, expected "
                f"{np.shape(param)}."
            )
