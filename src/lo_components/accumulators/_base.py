import abc
from typing import Generic, TypeVar

import equinox as eqx
from equinox import AbstractClassVar
from jaxtyping import Array, Float

StateT = TypeVar("StateT")


class AbstractStatistic(eqx.Module):
    """What one accumulator tells the features about one tensor.

    Every array of a statistic has a leading channel axis, followed by axes that broadcast against the tensor's:
    a full-size moment is `[c, *shape]`, the row factors of a matrix are `[c, rows, 1]`. That is all a caller needs
    to know to hand features a slice of the tensor.
    """


class AbstractAccumulator(eqx.Module, Generic[StateT]):
    """Remembers something about the gradients of *one* tensor, from step to step.

    An accumulator is a small recurrence: `init` gives the state before the first gradient, `update` folds one
    gradient in, `read` turns the state into the statistic that features ask for by its type (`produces`). Whatever
    needs a reduction over the tensor's axes belongs into `read`. States are float32 for every parameter dtype.
    """

    produces: AbstractClassVar[type[AbstractStatistic]]

    @abc.abstractmethod
    def init(self, param: Float[Array, "*shape"]) -> StateT:
        """The state before the first gradient, for a tensor of the shape of `param`."""

    @abc.abstractmethod
    def update(self, grad: Float[Array, "*shape"], state: StateT) -> StateT:
        """The state after `grad`."""

    @abc.abstractmethod
    def read(self, state: StateT) -> AbstractStatistic:
        """The statistic of type `produces` that `state` stands for."""
