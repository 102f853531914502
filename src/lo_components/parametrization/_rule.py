import dataclasses

import jax
import numpy as np
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    r"""How the size of an optimizer's update depends on the gradient, and so how it must scale with the width.

    For a weight with fan-in multiplier $m$, fan-out multiplier $\tilde m$ and forward multiplier $\alpha$, muP
    multiplies the optimizer's update by $\tilde m^{b}\, m^{-a}\, \alpha^{-(1 + s)}$.

    **Arguments:**

    - `fan_in`: $a$.
    - `fan_out`: $b$.
    - `gradient_power`: $s$; multiplying all gradients by $c$ multiplies updates by $c^s$.
    - `readout`: $a$ for readouts, without their forward multiplier; `None` if it follows from the formula, as
        $a - (1 + s)$.

    The rules below follow from one condition: the change of a weight has a spectral norm of order
    $\sqrt{\text{fan-out} / \text{fan-in}}$.

    | rule | optimizers | $a$ | $b$ | $s$ |
    | --- | --- | --- | --- | --- |
    | `SCALE_FREE` | Adam, AdamW, Lion, RMSProp, learned optimizers with normalized features | 1 | 0 | 0 |
    | `PROPORTIONAL` | SGD, with or without momentum | 1 | 1 | 1 |
    | `ORTHOGONALIZED` | Muon, Shampoo: all singular values of the update equal 1 | 1/2 | 1/2 | 0 |
    | `ORTHOGONALIZED_RMS` | Celo2: orthogonalized, with a root mean square of 1 | 1/2; readouts 0 | 0 | 0 |
    | `RELATIVE` | VeLO, Celo: in units of the parameter's root mean square | 1/2; readouts 0 | 0 | -1 |

    `ORTHOGONALIZED` applies to orthogonalized matrices, and to tensors whose update has norm 1. It also covers Muon
    implementations that multiply by $\sqrt{\max(1, \text{fan-out} / \text{fan-in})}$, for hidden matrices whose sides
    grow at the same rate. Do not orthogonalize embeddings with more tokens than units: the updates of their rows would
    grow with the width.

    `UNSCALED` is for updates that already have the right size, such as the mean of workers' deltas.

    ??? cite "Source"
        Yang, Simon & Bernstein, *A Spectral Condition for Feature Learning* (arXiv 2310.17813); for Muon
        arXiv 2512.05620 and 2601.01306.
    """

    fan_in: float
    fan_out: float
    gradient_power: float
    readout: float | None = None


def every_leaf(params: PyTree, rule: UpdateRule) -> PyTree[UpdateRule]:
    """A tree with the same rule for all parameters.

    **Arguments:**

    - `params`: a pytree of arrays.
    - `rule`: the rule of every array.

    **Returns:** the structure of `params` with `rule` at every leaf.
    """
    return jax.tree.map(lambda _: rule, params)


@dataclasses.dataclass(frozen=True)
class RuleByRank:
    """One update rule for tensors of rank 2 and more, another one for vectors and scalars, as Muon needs.

    **Arguments:**

    - `matrices`, `vectors`: the two rules.
    """

    matrices: UpdateRule
    vectors: UpdateRule

    def __call__(self, params: PyTree) -> PyTree[UpdateRule]:
        """The rule of each leaf.

        **Arguments:**

        - `params`: a pytree of arrays.

        **Returns:** the structure of `params` with a rule at every leaf.
        """
        return jax.tree.map(lambda p: self.matrices if np.ndim(p) >= 2 else self.vectors, params)


SCALE_FREE = UpdateRule(fan_in=1.0, fan_out=0.0, gradient_power=0.0)
"""Updates that do not depend on the scale of the gradient: Adam and learned optimizers."""

PROPORTIONAL = UpdateRule(fan_in=1.0, fan_out=1.0, gradient_power=1.0)
"""Updates that are proportional to the gradient: SGD."""

ORTHOGONALIZED = UpdateRule(fan_in=0.5, fan_out=0.5, gradient_power=0.0)
"""Updates with singular values of 1: Muon."""

ORTHOGONALIZED_RMS = UpdateRule(fan_in=0.5, fan_out=0.0, gradient_power=0.0, readout=0.0)
"""Orthogonalized updates with a root mean square of 1: Celo2."""

RELATIVE = UpdateRule(fan_in=0.5, fan_out=0.0, gradient_power=-1.0, readout=0.0)
"""Updates in units of the parameter's root mean square: VeLO and Celo."""

UNSCALED = UpdateRule(fan_in=0.0, fan_out=0.0, gradient_power=-1.0)
"""Updates that have the right size already: means of deltas."""
