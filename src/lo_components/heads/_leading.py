import equinox as eqx
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead


class LeadingOutputs(AbstractHead):
    """The first outputs of another head, whose other outputs are for somebody else."""

    head: AbstractHead
    out_size: int = eqx.field(static=True)

    def __init__(self, head: AbstractHead, out_size: int):
        """**Arguments:**

        - `head`: the other head.
        - `out_size`: how many outputs.
        """
        self.head = head
        self.out_size = out_size

    @property
    def in_size(self) -> int:
        return self.head.in_size

    @property
    def blockwise(self) -> bool:
        return self.head.blockwise

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        return self.head(features, view)[: self.out_size]
