import abc

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..parametrization import UpdateRule


class AbstractStepRule(eqx.Module):
    """Maps a head's outputs for one tensor to the tensor's update, with optax's sign (it is *added*).

    `in_size` is the number of outputs that it takes. `requires` is the set of statistics that it reads from the view;
    by default it reads none. `pointwise` says whether each element of the update depends only on the same element of
    the inputs, so that a tensor can be padded or evaluated in blocks. `update_rule` says how the size of the update
    depends on the gradient, if features do not depend on the gradient's scale.
    """

    in_size: AbstractVar[int]
    pointwise: AbstractVar[bool]
    update_rule: AbstractVar[UpdateRule]

    @property
    def requires(self) -> frozenset[type]:
        """The types of the statistics that `__call__` reads."""
        return frozenset()

    @abc.abstractmethod
    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        """The update to add to the parameter, from the head's outputs `out`; `view` gives the tensor itself."""
