from ._base import AbstractParametrization, WidthSpec


class SP(AbstractParametrization):
    r"""The standard parametrization: weights of deviation $1/\sqrt{\text{fan-in}}$, zero biases, no multipliers.

    Under it the best learning rate falls as the width grows, and feature learning blows up at a fixed one.
    """

    def init_std(self, width: WidthSpec) -> float:
        return 0.0 if width.role == "vector" else width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        return 1.0

    def update_scale(self, width: WidthSpec) -> float:
        return 1.0
