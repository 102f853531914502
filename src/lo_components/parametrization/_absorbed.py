import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._types import typechecked
from ._base import AbstractParametrization, Axis, WidthSpec, check_widths
from ._mup import MuP


class Absorbed(AbstractParametrization):
    r"""MuP without forward multipliers, for models whose code knows nothing of them.

    A layer $\alpha W x$ trains as $W' x$ with $W' = \alpha W$, if the initial values are multiplied by $\alpha$ and
    the update by $\alpha$ (Adam rule, up to its $\epsilon$) or $\alpha^2$ (SGD rule). Clipping by the global norm, and
    weight decay inside of the scaling, see another model. So `forward_multiplier` is 1, and the readout's update
    scale is $1/m$ for both rules (at `output_mult` 1).

    Attention stays as the model computes it. Where it divides by the square root of the head's size, as most code does,
    grow the number of heads with the width and not their size.

    **Arguments:**

    - `widths`: the parametrization whose multipliers to absorb.

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), lemma J.1 and table 3.
    """

    widths: MuP = MuP()

    def __check_init__(self):
        if not isinstance(self.widths, MuP):
            raise TypeError(f"`widths` must be a `MuP`, got {self.widths!r}.")

    def init_std(self, width: WidthSpec) -> float:
        return self.widths.init_std(width) * self.widths.forward_multiplier(width)

    def forward_multiplier(self, width: WidthSpec) -> float:
        return 1.0

    def update_scale(self, width: WidthSpec) -> float:
        power = 2 if self.widths.update_rule == "sgd" else 1
        return self.widths.update_scale(width) * self.widths.forward_multiplier(width) ** power

    def attention_scale(self, head: Axis) -> float:
        return self.widths.attention_scale(head)

    @property
    def residual_multiplier(self) -> float:
        return 1.0


@typechecked
def reinitialize(
    model: PyTree, widths: PyTree[WidthSpec], parametrization: AbstractParametrization, *, key: PRNGKeyArray
) -> PyTree:
    """A model with its weights drawn anew, from normal distributions with the parametrization's deviations.

    Biases, normalization scales and other vectors keep their values.

    **Arguments:**

    - `model`: any pytree, for instance an Equinox model.
    - `widths`: a `WidthSpec` for each of its floating-point arrays, from
        [`lo_components.parametrization.infer_widths`][].
    - `parametrization`: gives the deviations.
    - `key`: for the draws.

    Raises `ValueError` where `widths` does not belong to `model`.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)
    check_widths(widths, params)
    leaves, treedef = jax.tree.flatten(params)

    def draw(leaf, spec: WidthSpec, key):
        if spec.role == "vector":
            return leaf
        std = parametrization.init_std(spec)
        return (std * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)

    keys = jax.random.split(key, max(1, len(leaves)))
    drawn = [draw(x, s, k) for x, s, k in zip(leaves, jax.tree.leaves(widths), keys, strict=False)]
    return eqx.combine(treedef.unflatten(drawn), static)
