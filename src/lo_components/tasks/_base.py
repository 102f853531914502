import abc
from typing import TYPE_CHECKING, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..parametrization import AbstractParametrization, WidthSpec

# Type checkers take an `AbstractVar` for a field, which would come before those of subclasses in their `__init__`.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar

BatchT = TypeVar("BatchT")


class AbstractTask(eqx.Module, Generic[BatchT]):
    """A model with its data: how to initialize parameters, sample a batch and compute a loss.

    - `widths`: how each array of the parameters grows with the model's width; `None`: updates are not scaled.
    - `parametrization`: how updates scale with the widths; inner steps apply the scales around the learner.
    - `max_loss`: where per-step losses are clipped when they serve as meta-losses; infinity: not at all.
    """

    widths: AbstractVar[PyTree[WidthSpec] | None]
    parametrization: AbstractVar[AbstractParametrization]
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


class AbstractMeasuredTask(AbstractTask[BatchT]):
    """A task that measures parameters on whole splits, as [`lo_components.meta.evaluate`][] does during training."""

    @abc.abstractmethod
    def metrics(self, params: Params, *, split: str, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
        """Loss, accuracy and the like over all examples of a split.

        **Arguments:**

        - `params`: the parameters.
        - `split`: the name of the split.
        - `key`: for metrics that need randomness.

        **Returns:** scalars by name, with the names that are usual: `"loss"`, `"accuracy"`.
        """
