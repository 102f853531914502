import abc
from typing import TYPE_CHECKING, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._types import Params, Scales

# Type checkers take an `AbstractVar` for a field, which would come before those of subclasses in their `__init__`.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar

BatchT = TypeVar("BatchT")


class AbstractTask(eqx.Module, Generic[BatchT]):
    """An optimizee with its data: how to initialize parameters, draw a batch and compute a loss.

    - `update_scales`: one float per leaf of the parameters, from the task's parametrization; inner steps apply them
        around the learner. `None`: no scaling.
    - `max_loss`: where per-step losses are clipped when they serve as meta-losses; infinity: not at all.
    """

    update_scales: AbstractVar[Scales | None]
    max_loss: AbstractVar[float]

    @abc.abstractmethod
    def init(self, *, key: PRNGKeyArray) -> Params:
        """Initial parameters."""

    @abc.abstractmethod
    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> BatchT:
        """A batch of `split`; `worker` chooses a worker's own data where workers differ."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: BatchT, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """The loss of `params` on `batch`."""
