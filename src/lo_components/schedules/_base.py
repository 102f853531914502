import abc
from typing import Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int

StateT = TypeVar("StateT")

_WAYS = {
    "loss": "pass `StepContext(loss=...)` to `update`, or `value=...` to that of an optax transformation",
    "num_steps": "pass `StepContext(num_steps=...)` to `update`, or `num_steps=...` to that of an optax transformation",
}


class Progress(eqx.Module):
    """How far training has come.

    **Arguments:**

    - `step`: the number of steps taken before this one.
    - `loss`: this step's loss, if known.
    - `num_steps`: the length of training, if known.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""] | None = None
    num_steps: Int[Array, ""] | None = None

    def required(self, name: str) -> Array:
        """An optional field, for schedules that cannot do without it.

        **Arguments:**

        - `name`: `"loss"` or `"num_steps"`.

        Raises `ValueError` if it is not known, and says how to pass it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"A schedule needs `{name}`, which is not known: {_WAYS[name]}.")
        return value


class AbstractSchedule(eqx.Module, Generic[StateT]):
    """A factor for each step of training. Arrays are meta-parameters."""

    @abc.abstractmethod
    def init(self) -> StateT:
        """The state before the first step."""

    @abc.abstractmethod
    def __call__(self, state: StateT, progress: Progress) -> tuple[Float[Array, ""], StateT]:
        """The factor of this step, and the next state.

        **Arguments:**

        - `state`: from `init` or the previous call.
        - `progress`: the step, the loss and the length of training.
        """
