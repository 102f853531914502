from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead


class HeadByRank(AbstractHead):
    """One head for tensors of rank 2 and more, another one for vectors and scalars."""

    matrices: AbstractHead
    vectors: AbstractHead

    def __init__(self, matrices: AbstractHead, vectors: AbstractHead):
        """**Arguments:**

        - `matrices`, `vectors`: the two heads, of the same sizes.

        Raises `ValueError` if their sizes differ.
        """
        self.matrices = matrices
        self.vectors = vectors

    def __check_init__(self):
        sizes = [(head.in_size, head.out_size) for head in (self.matrices, self.vectors)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"`matrices` and `vectors` must have the same sizes, got {sizes[0]} and {sizes[1]}.")

    @property
    def in_size(self) -> int:
        return self.matrices.in_size

    @property
    def out_size(self) -> int:
        return self.matrices.out_size

    @property
    def blockwise(self) -> bool:
        return self.matrices.blockwise

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        return (self.matrices if view.param.ndim >= 2 else self.vectors)(features, view)
