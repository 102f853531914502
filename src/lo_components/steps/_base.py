import abc

import equinox as eqx
from equinox import AbstractClassVar, AbstractVar
from jaxtyping import Array, Float

from ..features import TensorView


class AbstractStepRule(eqx.Module):
    """Turns a head's outputs for one tensor into the update of that tensor, with optax's sign (it is *added*).

    `in_size` is the number of outputs it takes; `pointwise` says whether element `i` of the update depends on element
    `i` of its inputs alone, so that a tensor may be evaluated block by block.
    """

    in_size: AbstractVar[int]
    pointwise: AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        """The update to add to the parameter."""
