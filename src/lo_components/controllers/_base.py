import abc
from typing import Generic, TypeVar

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..schedules import Progress

StateT = TypeVar("StateT")


class AbstractController(eqx.Module, Generic[StateT]):
    """Maps summaries of all tensors, the time and the loss to a few numbers for each tensor, its controls.

    Heads, step rules and transforms read them from the view. `in_size` is the number of numbers in a summary,
    `out_size` that of controls. The order of the tensors must not matter.
    """

    in_size: AbstractVar[int]
    out_size: AbstractVar[int]

    @abc.abstractmethod
    def init(self, num_tensors: int) -> StateT:
        """The state before the first step.

        **Arguments:**

        - `num_tensors`: the number of tensors of the model.
        """

    @abc.abstractmethod
    def __call__(
        self, summaries: Float[Array, "tensors in_size"], state: StateT, progress: Progress
    ) -> tuple[Float[Array, "tensors out_size"], StateT]:
        """The controls of each tensor for this step, and the next state.

        **Arguments:**

        - `summaries`: one row for each tensor.
        - `state`: from `init` or the previous call.
        - `progress`: the step, the loss and the length of training.
        """
