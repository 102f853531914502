import abc
from typing import Generic, TypeVar

import equinox as eqx
from equinox import AbstractClassVar
from jaxtyping import Array, Float

StateT = TypeVar("StateT")


class AbstractStatistic(eqx.Module):
    """The result of one accumulator for one tensor, which features read.

    Every array of a statistic has a leading channel axis; its other axes broadcast against those of the tensor. A full
    moment is `[c, *shape]`, the row factors of a matrix are `[c, rows, 1]`. This is enough to slice a statistic along
    with its tensor.
    """


class AbstractAccumulator(eqx.Module, Generic[StateT]):
    """A recurrence over the gradients of *one* tensor.

    `init` returns the state before the first gradient, `update` folds in one gradient, and `read` turns the state into
    a statistic, which features request by its type (`produces`). Reductions over the axes of the tensor belong in
    `read`. States are float32 for every parameter dtype.
    """

    produces: AbstractClassVar[type[AbstractStatistic]]

    @abc.abstractmethod
    def init(self, param: Float[Array, "*shape"]) -> StateT:
        """The state before the first gradient, for a tensor of the shape of `param`."""

    @abc.abstractmethod
    def update(self, grad: Float[Array, "*shape"], state: StateT) -> StateT:
        """The state that follows `state` once `grad` is folded in."""

    @abc.abstractmethod
    def read(self, state: StateT) -> AbstractStatistic:
        """The statistic of type `produces` for `state`."""
