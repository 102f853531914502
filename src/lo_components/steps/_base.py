import abc

import equinox as eqx
from equinox import AbstractClassVar, AbstractVar
from jaxtyping import Array, Float

from ..features import TensorView
from ..parametrization import UpdateRule


class AbstractStepRule(eqx.Module):
    """Turns a head's outputs for one tensor into the update of that tensor, with optax's sign (it is *added*).

    `in_size` is the number of outputs it takes; `pointwise` says whether element `i` of the update depends only on
    element `i` of its inputs, so that a tensor may be evaluated in blocks; `update_rule` says how the size of the
    update depends on the gradient, for features that do not depend on its scale.
    """

    in_size: AbstractVar[int]
    pointwise: AbstractClassVar[bool]
    update_rule: AbstractClassVar[UpdateRule]

    @abc.abstractmethod
    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        """The update to add to the parameter."""
