from typing import Any

from equinox import AbstractVar
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..parametrization import AbstractParametrization, WidthSpec
from ._base import AbstractTask


class AbstractTaskWrapper(AbstractTask[Any]):
    """A task made from another, its field `task`. Forwards to `task` whatever a subclass does not define."""

    task: AbstractVar[AbstractTask]

    @property
    def widths(self) -> PyTree[WidthSpec] | None:
        """The widths of `task`."""
        return self.task.widths

    @property
    def parametrization(self) -> AbstractParametrization:
        """The parametrization of `task`."""
        return self.task.parametrization

    @property
    def max_loss(self) -> float:
        """The `max_loss` of `task`."""
        return self.task.max_loss

    def init(self, *, key: PRNGKeyArray) -> Params:
        """The initial parameters of `task`, sampled with `key`."""
        return self.task.init(key=key)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        """A batch of `task`, with `split` and `worker` as in `AbstractTask`."""
        return self.task.batch(key=key, split=split, worker=worker)

    def loss(self, params: Params, batch: Any, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """The loss of `task` at `params` on `batch`."""
        return self.task.loss(params, batch, key=key)
