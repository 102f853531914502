from jaxtyping import Array, Float

from ._base import AbstractParametrization
from ._rule import UpdateRule
from ._width import Axis, WidthSpec


class MuP(AbstractParametrization):
    r"""The maximal update parametrization: pre-activations change by the same amount at every width.

    For an array with fan-in $n$, fan-in multiplier $m$ and fan-out multiplier $\tilde m$:

    | role | initial standard deviation | forward multiplier | update: scale-free | proportional | orthogonalized |
    | --- | --- | --- | --- | --- | --- |
    | input | $n^{-1/2}$ | `input_mult` | 1 | $\tilde m$ | $\sqrt{\tilde m}$ |
    | hidden | $n^{-1/2}$ | 1 | $1/m$ | $\tilde m / m$ | $\sqrt{\tilde m / m}$ |
    | output | 0 ($(n/m)^{-1/2}$ for bottlenecks) | `output_mult` $/\,m$ | 1 | $m$ | $\sqrt{m}$ |
    | vector | `bias_std` ($n^{-1/2}$ for weights) | 1 | 1 | $\tilde m$ | $\sqrt{\tilde m}$ |

    The last three columns are the update scale, for the three kinds of
    [`lo_components.parametrization.UpdateRule`][]. For hidden weights it is also multiplied by `hidden_mult`.

    Attention logits are multiplied by $1/d$ for heads of size $d$, or by $\sqrt{d_0}/d$ if there is a base size $d_0$.
    An optimizer that was tuned or meta-trained on narrow networks then works on wide ones.

    **Arguments:**

    - `input_mult`, `output_mult`, `hidden_mult`: hyper-multipliers; 1 for learned optimizers, tuned for muAdam.
    - `bias_std`: standard deviation of the initial biases: 1 in the networks of the muLO paper, 0 under SP and for
        `residual_muon`.

    **Example:**

    ```pycon
    >>> hidden = loc.parametrization.WidthSpec((256, 256), "hidden", fan_in=256, fan_in_mult=4.0)
    >>> loc.parametrization.MuP().update_scale(hidden, loc.parametrization.SCALE_FREE)
    0.25
    ```

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), table 8; muLO (arXiv 2406.00153), section 4.1.
    """

    input_mult: float = 1.0
    output_mult: float = 1.0
    hidden_mult: float | Float[Array, ""] = 1.0
    bias_std: float = 1.0

    def init_std(self, width: WidthSpec) -> float:
        if width.fan_in is None:
            return self.bias_std
        if width.role == "output":
            # With the forward multiplier 1 / m, weights are of order 1 / m, as large as updates make them.
            return (width.fan_in / width.fan_in_mult) ** -0.5 if width.bottleneck else 0.0
        return width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        if width.role == "output":
            return self.output_mult / width.fan_in_mult
        return self.input_mult if width.role == "input" else 1.0

    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float | Float[Array, ""]:
        multiplier = self.hidden_mult if width.role == "hidden" else 1.0
        fan_in = rule.fan_in
        if width.role == "output":
            # The readout's forward multiplier is already the inverse of its fan-in multiplier.
            fan_in = rule.fan_in - (1 + rule.gradient_power) if rule.readout is None else rule.readout
        return multiplier * width.fan_out_mult**rule.fan_out / width.fan_in_mult**fan_in

    def attention_scale(self, head: Axis) -> float:
        if not head.wide:
            return head.size**-0.5
        return (1.0 if head.base is None else head.base**0.5) / head.size

    @property
    def residual_multiplier(self) -> float:
        return 1.0
