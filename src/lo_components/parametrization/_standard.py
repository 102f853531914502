from ._base import AbstractParametrization, Axis, WidthSpec
from ._rule import UpdateRule


class SP(AbstractParametrization):
    r"""The standard parametrization: $1/\sqrt{\text{fan-in}}$ as standard deviation of weights, zero biases, no
    multipliers.

    Attention logits are divided by the square root of the head's size. Under it the best learning rate falls as the
    width grows, and feature learning blows up at a fixed one.
    """

    def init_std(self, width: WidthSpec) -> float:
        return 0.0 if width.fan_in is None else width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        return 1.0

    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float:
        return 1.0

    def attention_scale(self, head: Axis) -> float:
        return head.size**-0.5

    @property
    def residual_multiplier(self) -> float:
        return 1.0
