from typing import Literal

from ._base import AbstractParametrization, Axis, WidthSpec


class MuP(AbstractParametrization):
    r"""The maximal update parametrization: every pre-activation changes by as much at any width.

    With $n$ the fan-in, $m$ the fan-in multiplier and $\tilde m$ the fan-out multiplier of an array:

    | role | initial standard deviation | forward multiplier | update scale, Adam | update scale, SGD |
    | --- | --- | --- | --- | --- |
    | input | $n^{-1/2}$ | `input_mult` | 1 | $\tilde m$ |
    | hidden | $n^{-1/2}$ | 1 | `hidden_mult` $/\,m$ | `hidden_mult` $\tilde m / m$ |
    | output | 0 | `output_mult` $/\,m$ | 1 | $m$ |
    | vector | `bias_std`; $n^{-1/2}$ for weights between sides that do not grow | 1 | 1 | $\tilde m$ |

    Attention logits are divided by the head's size (times the square root of the base head's size, where there is a
    base). An optimizer tuned or meta-trained on narrow networks then works on wide ones.

    **Arguments:**

    - `update_rule`: what kind of optimizer the scales are for. `"adam"`: entries of the update do not depend on the
        size of the gradient: Adam, AdamW, Lion, RMSProp, and learned optimizers with normalized features (muLO,
        equation 3). `"sgd"`: the update is proportional to the gradient: SGD with or without momentum.
    - `input_mult`, `output_mult`, `hidden_mult`: hyper-multipliers, 1 for learned optimizers, tuned for muAdam.
    - `bias_std`: of the initial biases; the muLO paper's networks use 1.

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), table 8; muLO (arXiv 2406.00153), section 4.1.
    """

    update_rule: Literal["adam", "sgd"] = "adam"
    input_mult: float = 1.0
    output_mult: float = 1.0
    hidden_mult: float = 1.0
    bias_std: float = 1.0

    def __check_init__(self):
        if self.update_rule not in ("adam", "sgd"):
            raise ValueError(f"`update_rule` must be 'adam' or 'sgd', got {self.update_rule!r}.")

    def init_std(self, width: WidthSpec) -> float:
        if width.fan_in is None:
            return self.bias_std
        return 0.0 if width.role == "output" else width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        if width.role == "output":
            return self.output_mult / width.fan_in_mult
        return self.input_mult if width.role == "input" else 1.0

    def update_scale(self, width: WidthSpec) -> float:
        if width.role == "hidden":
            rule = width.fan_out_mult if self.update_rule == "sgd" else 1.0
            return self.hidden_mult * rule / width.fan_in_mult
        if self.update_rule == "adam":
            return 1.0
        return width.fan_in_mult if width.role == "output" else width.fan_out_mult

    def attention_scale(self, head: Axis) -> float:
        if not head.wide:
            return head.size**-0.5
        return (1.0 if head.base is None else head.base**0.5) / head.size

    @property
    def residual_multiplier(self) -> float:
        return 1.0
