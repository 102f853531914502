from jaxtyping import Array, Float

from ._base import AbstractParametrization
from ._rule import UpdateRule
from ._width import Axis, WidthSpec


class SP(AbstractParametrization):
    r"""The standard parametrization: weights of standard deviation $1/\sqrt{\text{fan-in}}$, zero biases.

    There are no multipliers. Attention logits are divided by the square root of the head size. The best learning rate
    falls as the width grows; at a fixed rate, feature learning blows up.
    """

    def init_std(self, width: WidthSpec) -> float:
        return 0.0 if width.fan_in is None else width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        return 1.0

    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float | Float[Array, ""]:
        return 1.0

    def attention_scale(self, head: Axis) -> float:
        return head.size**-0.5

    @property
    def residual_multiplier(self) -> float:
        return 1.0
