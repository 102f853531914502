import math

from jaxtyping import Array, Float

from ._base import AbstractParametrization
from ._mup import MuP
from ._rule import UpdateRule
from ._width import Axis, WidthSpec


class DepthMuP(AbstractParametrization):
    r"""MuP with residual branches scaled so that hyperparameters also transfer across depths.

    With the depth multiplier $\ell$, which is `depth` over `base_depth`, and the `exponent` $\alpha$:

    - each residual branch's output is multiplied by $\ell^{-\alpha}$;
    - update scales of arrays in residual branches are multiplied by $\ell^{(1 + s)\alpha - 1}$, with $s$ the
      `gradient_power` of the optimizer's update rule: $\ell^{\alpha - 1}$ for Adam, $\ell^{2\alpha - 1}$ for SGD;
    - all else is as in `mup`.

    $\alpha = 1$ is CompleteP, under which every layer learns features beyond their linearization at any depth;
    $\alpha = 1/2$ is depth-muP. CompleteP also multiplies Adam's $\epsilon$ by $\ell^{-\alpha}$ in residual branches;
    choose it small enough not to matter.

    **Arguments:**

    - `depth`: the model's number of residual blocks.
    - `base_depth`: the depth at which nothing is scaled.
    - `exponent`: $\alpha$, between 1/2 and 1.
    - `mup`: scales with the width.

    Raises `TypeError` if `mup` is not a `MuP`, and `ValueError` if a number is out of range.

    ??? cite "Source"
        Dey et al., *Don't be lazy: CompleteP enables compute-efficient deep transformers* (arXiv 2505.01618), table 1;
        Yang et al., *Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks* (arXiv 2310.02244).
    """

    depth: int
    base_depth: int = 1
    exponent: float = 1.0
    mup: MuP = MuP()

    def __check_init__(self):
        if not isinstance(self.mup, MuP):
            raise TypeError(f"`mup` must be a `MuP`, got {self.mup!r}.")
        if self.depth < 1 or self.base_depth < 1:
            raise ValueError(f"`depth` and `base_depth` must be at least 1, got {self.depth} and {self.base_depth}.")
        if not (math.isfinite(self.exponent) and 0.5 <= self.exponent <= 1.0):
            raise ValueError(f"`exponent` must lie between 0.5 and 1, got {self.exponent}.")

    @property
    def residual_multiplier(self) -> float:
        return self.mup.residual_multiplier * (self.depth / self.base_depth) ** -self.exponent

    def init_std(self, width: WidthSpec) -> float:
        return self.mup.init_std(width)

    def forward_multiplier(self, width: WidthSpec) -> float:
        return self.mup.forward_multiplier(width)

    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float | Float[Array, ""]:
        scale = self.mup.update_scale(width, rule)
        if not width.residual:
            return scale
        # The branch's multiplier is a factor of the gradient, too.
        return scale * (self.depth / self.base_depth) ** ((1 + rule.gradient_power) * self.exponent - 1)

    def attention_scale(self, head: Axis) -> float:
        return self.mup.attention_scale(head)
