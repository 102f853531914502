from ._base import AbstractParametrization, WidthSpec


class MuP(AbstractParametrization):
    r"""The maximal update parametrization for Adam-type updates, learned optimizers among them.

    With $n$ the fan-in and $m$ the fan-in multiplier of an array:

    | role | initial standard deviation | forward multiplier | update scale |
    | --- | --- | --- | --- |
    | input | $n^{-1/2}$ | `input_mult` | 1 |
    | hidden | $n^{-1/2}$ | 1 | `hidden_mult` $/\,m$ |
    | output | 0 | `output_mult` $/\,m$ | 1 |
    | vector | `bias_std` | 1 | 1 |

    Every pre-activation then changes by an amount that does not depend on the width, so an optimizer tuned or
    meta-trained on narrow networks works on wide ones.

    **Arguments:**

    - `input_mult`, `output_mult`, `hidden_mult`: hyper-multipliers, 1 for learned optimizers, tuned for muAdam.
    - `bias_std`: of the initial biases; the muLO paper's networks use 1.

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), table 8; muLO (arXiv 2406.00153), section 4.1.
    """

    input_mult: float = 1.0
    output_mult: float = 1.0
    hidden_mult: float = 1.0
    bias_std: float = 1.0

    def init_std(self, width: WidthSpec) -> float:
        if width.role == "vector":
            return self.bias_std
        return 0.0 if width.role == "output" else width.fan_in**-0.5

    def forward_multiplier(self, width: WidthSpec) -> float:
        if width.role == "output":
            return self.output_mult / width.fan_in_mult
        return self.input_mult if width.role == "input" else 1.0

    def update_scale(self, width: WidthSpec) -> float:
        return self.hidden_mult / width.fan_in_mult if width.role == "hidden" else 1.0
