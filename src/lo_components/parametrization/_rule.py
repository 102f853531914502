import dataclasses

import jax
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    r"""How the size of an optimizer's update depends on the gradient, which decides how it must scale with the width.

    With $m$ and $\tilde m$ the fan-in and fan-out multipliers of a weight whose layer multiplies it by $\alpha$, the
    maximal update is the optimizer's times $\tilde m^{b}\, m^{-a}\, \alpha^{-(1 + s)}$.

    **Arguments:**

    - `fan_in`: $a$.
    - `fan_out`: $b$.
    - `gradient_power`: $s$, where multiplying all gradients by $c$ multiplies updates by $c^s$.

    The three rules in use follow from one condition: the change of a weight has a spectral norm of the order of
    $\sqrt{\text{fan-out} / \text{fan-in}}$.

    | rule | optimizers | $a$ | $b$ | $s$ |
    | --- | --- | --- | --- | --- |
    | `SCALE_FREE` | Adam, AdamW, Lion, RMSProp, learned optimizers with normalized features | 1 | 0 | 0 |
    | `PROPORTIONAL` | SGD, with or without momentum | 1 | 1 | 1 |
    | `ORTHOGONALIZED` | Muon, Shampoo: all singular values of the update equal 1 | 1/2 | 1/2 | 0 |

    `ORTHOGONALIZED` is for matrices that are orthogonalized, and for tensors whose update has norm 1. Muon
    implementations that multiply by $\sqrt{\max(1, \text{fan-out} / \text{fan-in})}$ are covered for hidden matrices
    whose sides grow alike. Embeddings with more tokens than units should not be orthogonalized: their rows' updates
    would grow with the width.

    `UNSCALED` is the rule of updates that already have the right size, such as means of workers' deltas.

    ??? cite "Source"
        Yang, Simon & Bernstein, *A Spectral Condition for Feature Learning* (arXiv 2310.17813); for Muon
        arXiv 2512.05620 and 2601.01306.
    """

    fan_in: float
    fan_out: float
    gradient_power: float


def every_leaf(params: PyTree, rule: UpdateRule) -> PyTree[UpdateRule]:
    """One rule for all parameters.

    **Arguments:**

    - `params`: a pytree of arrays.
    - `rule`: for each of them.

    **Returns:** the structure of `params` with `rule` at every leaf.
    """
    return jax.tree.map(lambda _: rule, params)


SCALE_FREE = UpdateRule(fan_in=1.0, fan_out=0.0, gradient_power=0.0)
PROPORTIONAL = UpdateRule(fan_in=1.0, fan_out=1.0, gradient_power=1.0)
ORTHOGONALIZED = UpdateRule(fan_in=0.5, fan_out=0.5, gradient_power=0.0)
UNSCALED = UpdateRule(fan_in=0.0, fan_out=0.0, gradient_power=-1.0)
