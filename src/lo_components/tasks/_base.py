import abc
from typing import TYPE_CHECKING, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..parametrization import AbstractParametrization, WidthSpec

# Type checkers mistake an `AbstractVar` for a field, which would precede the fields of subclasses in `__init__`.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar

BatchT = TypeVar("BatchT")


class AbstractTask(eqx.Module, Generic[BatchT]):
    """A model with its data: how to initialize parameters, sample a batch and compute a loss.

    - `widths`: how each array of the parameters grows with the width of the model. If `None`, updates are not scaled.
    - `parametrization`: gives the update scales for the widths; inner steps apply them around the learner.
    - `max_loss`: the value at which per-step losses are clipped in a meta-loss; infinity for no clipping.
    """

    widths: AbstractVar[PyTree[WidthSpec] | None]
    parametrization: AbstractVar[AbstractParametrization]
    max_loss: AbstractVar[float]

    @abc.abstractmethod
    def init(self, *, key: PRNGKeyArray) -> Params:
        """The initial parameters, sampled with `key`."""

    @abc.abstractmethod
    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> BatchT:
        """A batch of `split`. `worker` is the index of a worker, for tasks in which workers have different data."""

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

        **Returns:** scalars by name, for instance `"loss"` and `"accuracy"`.
        """
