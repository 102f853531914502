import equinox as eqx

from ._base import AbstractFeature, Channels, TensorView


class Gradient(AbstractFeature):
    """The gradient $g$ itself, one channel. For aggregators: the mean of the workers' deltas.

    Scaling the gradient by $s$ scales it by $s$.
    """

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.grad[None]),)


class Parameter(AbstractFeature):
    """The parameter $p$ before the step, one channel. Does not depend on the gradient."""

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view: TensorView) -> tuple[Channels, ...]:
        return (Channels(view.param[None]),)
