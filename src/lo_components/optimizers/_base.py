import abc
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._tree import path_name, structure_difference
from .._types import Params, typechecked
from ..parametrization import UpdateRule

StateT = TypeVar("StateT")


class StepContext(eqx.Module):
    """Optional inputs of an update. New fields can be added without breaking existing optimizers.

    **Arguments:**

    - `loss`: the loss at this step.
    - `num_steps`: the length of training, in steps (or rounds).
    - `loss_fn`: a function from parameters to a loss, for optimizers that compare several updates.

    The first two may be Python, NumPy or JAX scalars.
    """

    loss: float | Float[Array | np.ndarray, ""] | np.floating | None = None
    num_steps: int | Int[Array | np.ndarray, ""] | np.integer | None = None
    loss_fn: Callable[[Any], Float[Array, ""]] | None = eqx.field(default=None, static=True)

    def loss_array(self) -> Float[Array, ""] | None:
        """The `loss` as a float32 array, if given. Raises `ValueError` unless it is a scalar."""
        return None if self.loss is None else jnp.asarray(_scalar(self.loss, "loss"), jnp.float32)

    def num_steps_array(self) -> Int[Array, ""] | None:
        """The `num_steps` as an int32 array, if given. Raises `ValueError` unless it is a scalar."""
        return None if self.num_steps is None else jnp.asarray(_scalar(self.num_steps, "num_steps"), jnp.int32)


def _scalar(x: Any, name: str) -> Any:
    if np.ndim(x):
        raise ValueError(f"`{name}` must be a scalar, got shape {np.shape(x)}; pass, for instance, its mean.")
    return x


class AbstractOptimizer(eqx.Module, Generic[StateT]):
    """An optimizer, as a pytree whose array leaves are its meta-parameters.

    Python numbers, and arrays wrapped as [`lo_components.Constant`][], are not meta-learned. The state never contains
    the parameters. The update has optax's sign: it is *added* to the parameters, and has their structure, shapes and
    dtypes.
    """

    @abc.abstractmethod
    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        """How the size of each array's update depends on its gradient; parametrizations scale updates accordingly.

        **Arguments:**

        - `params`: a pytree of floating-point arrays; only its structure and shapes matter.

        **Returns:** an [`lo_components.parametrization.UpdateRule`][] for each leaf of `params`.
        """

    @abc.abstractmethod
    def init(self, params: Params) -> StateT:
        """The state before the first step.

        **Arguments:**

        - `params`: a pytree of floating-point arrays.
        """

    @abc.abstractmethod
    def update(
        self, grads: Params, state: StateT, params: Params, *, context: StepContext = StepContext()
    ) -> tuple[Params, StateT]:
        """One step.

        **Arguments:**

        - `grads`: the gradients, with the structure and shapes of `params`.
        - `state`: from `init` or the previous `update`.
        - `params`: the parameters before the step.
        - `context`: the loss and the length of training, for optimizers that use them.

        **Returns:** the update to add to `params`, in their dtypes, and the next state.

        Raises `ValueError` if `grads` does not match `params`.
        """


def cast_like(updates: Params, params: Params) -> Params:
    """`updates` in the dtypes of `params`; optax transformations may return others."""
    return jax.tree.map(lambda u, p: u.astype(jnp.asarray(p).dtype), updates, params)


def checked_update(update):
    """Check the arguments of an `update` method. `grads` comes first, so that errors name it."""
    typed = typechecked(update)

    @functools.wraps(update)
    def checked(self, grads, state, params, *, context: StepContext = StepContext()):
        _check_grads(grads, params)
        return typed(self, grads, state, params, context=context)

    return checked


def _check_grads(grads: Any, params: Any) -> None:
    if difference := structure_difference(grads, params):
        raise ValueError(
            f"`grads` must have the structure of `params`, but {difference}; differentiate the loss with respect to "
            "`params` itself."
        )
    for (path, grad), param in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if np.shape(grad) != np.shape(param):
            raise ValueError(
                f"`grads` must have the shapes of `params`: at `{path_name(path)}` got {np.shape(grad)}, expected "
                f"{np.shape(param)}."
            )
