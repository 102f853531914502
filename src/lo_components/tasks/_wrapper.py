from typing import Any

from equinox import AbstractVar
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._types import Params, Scales
from ._base import AbstractTask


class AbstractTaskWrapper(AbstractTask[Any]):
    """A task made of another, its field `task`: what a subclass does not define of `update_scales`, `max_loss`, `init`,
    `batch` and `loss` is the other's."""

    task: AbstractVar[AbstractTask]

    @property
    def update_scales(self) -> Scales | None:
        """The other's."""
        return self.task.update_scales

    @property
    def max_loss(self) -> float:
        """The other's."""
        return self.task.max_loss

    def init(self, *, key: PRNGKeyArray) -> Params:
        """The other's."""
        return self.task.init(key=key)

    def batch(self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None) -> Any:
        """The other's."""
        return self.task.batch(key=key, split=split, worker=worker)

    def loss(self, params: Params, batch: Any, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """The other's."""
        return self.task.loss(params, batch, key=key)
