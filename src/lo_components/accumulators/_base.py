import abc
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float

from ._view import TensorView

# Type checkers mistake an `AbstractClassVar` for a field of `__init__`.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

StateT = TypeVar("StateT")


class AbstractAccumulator(eqx.Module, Generic[StateT]):
    """A recurrence over the steps of *one* tensor, such as a moving average of its gradient.

    `init` returns the state before the first step, `update` folds in one step, and `read` turns the state into a
    statistic, which features request by its type (`produces`).

    A state is an array or, as in optax, a `NamedTuple` of arrays, float32 for every parameter dtype, with the same
    fields for tensors of every shape. A statistic may have the same type as the state. Each array of a statistic is
    `[c, *#shape]`, with a leading channel axis and axes that broadcast against those of the tensor, so that it can be
    evaluated in blocks of rows together with the tensor: a full moment is `[c, *shape]`, the row factors of a matrix
    are `[c, rows, 1]`. A statistic of the tensor as a whole, such as the norm of its gradient or a moving average of
    the loss, is `[c]`. Reductions over the axes of the tensor belong in `update` or `read`, which always see the whole
    tensor.

    `pointwise_on_vectors` says whether each element of the state of a vector depends only on the same element of the
    view, so that vectors of different lengths can be padded and computed together. It is false by default.
    """

    produces: AbstractClassVar[type]
    pointwise_on_vectors: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, param: Float[Array, "*shape"]) -> StateT:
        """The state before the first step, for a tensor of the shape of `param`."""

    @abc.abstractmethod
    def update(self, view: TensorView, state: StateT) -> StateT:
        """The state that follows `state` after the step in `view`: its gradient, parameter, loss and step count."""

    @abc.abstractmethod
    def read(self, state: StateT) -> object:
        """The statistic of type `produces` for `state`."""
