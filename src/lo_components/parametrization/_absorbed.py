import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._types import typechecked
from ._base import AbstractParametrization, check_multipliers, check_widths
from ._mup import MuP
from ._rule import UpdateRule
from ._width import Axis, WidthSpec


class Absorbed(AbstractParametrization):
    r"""MuP without forward multipliers, for models that do not apply them.

    A layer $\alpha W x$ trains like $W' x$ with $W' = \alpha W$ if initial values are multiplied by $\alpha$ and
    updates by $\alpha^{1 + s}$, with $s$ the `gradient_power` of the optimizer's update rule (for Adam up to its
    $\epsilon$). So `forward_multiplier` is 1, and the readout's update scale is $1/m$ for both Adam and SGD (if
    `output_mult` is 1). Clipping by the global norm and weight decay inside the scaling are not equivalent.

    The model still computes attention in its own way. If it divides by the square root of the head size, as most code
    does, let the number of heads grow with the width rather than their size.

    **Arguments:**

    - `mup`: the parametrization whose multipliers to absorb.

    Raises `TypeError` if `mup` is not a `MuP`.

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), lemma J.1 and table 3.
    """

    mup: MuP = MuP()

    def __check_init__(self):
        if not isinstance(self.mup, MuP):
            raise TypeError(f"`mup` must be a `MuP`, got {self.mup!r}.")

    def init_std(self, width: WidthSpec) -> float:
        return self.mup.init_std(width) * self.mup.forward_multiplier(width)

    def forward_multiplier(self, width: WidthSpec) -> float:
        return 1.0

    def update_scale(self, width: WidthSpec, rule: UpdateRule) -> float | Float[Array, ""]:
        return self.mup.update_scale(width, rule) * self.mup.forward_multiplier(width) ** (1 + rule.gradient_power)

    def attention_scale(self, head: Axis) -> float:
        return self.mup.attention_scale(head)

    @property
    def residual_multiplier(self) -> float:
        return 1.0


@typechecked
def reinitialize(
    model: PyTree, widths: PyTree[WidthSpec], parametrization: AbstractParametrization, *, key: PRNGKeyArray
) -> PyTree:
    """A model with new weights, sampled from normal distributions with the parametrization's standard deviations.

    Biases, normalization scales and other vectors keep their values. The gains of a `equinox.nn.WeightNorm` become the
    norms of the new weights, so that it computes with the weights as sampled.

    **Arguments:**

    - `model`: any pytree, for instance an Equinox model.
    - `widths`: a `WidthSpec` for each of its floating-point arrays, from
        [`lo_components.parametrization.infer_widths`][].
    - `parametrization`: gives the standard deviations; `Absorbed(MuP())` for models that apply no forward
        multipliers.
    - `key`: for the samples.

    Raises `TypeError` if `widths` were inferred and the parametrization needs forward multipliers, which the model's
    own code does not apply. Raises `ValueError` if `widths` does not match `model`, or if a query and a key (or a value
    and an output) of an attention would both start at zero.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)
    check_widths(widths, params, parametrization)
    check_multipliers(widths, parametrization)
    leaves, treedef = jax.tree.flatten(params)

    def sample(leaf, spec: WidthSpec, key):
        if spec.role == "vector":
            return leaf
        std = parametrization.init_std(spec)
        return (std * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)

    keys = jax.random.split(key, max(1, len(leaves)))
    sampled = [sample(x, s, k) for x, s, k in zip(leaves, jax.tree.leaves(widths), keys, strict=False)]
    sampled = eqx.combine(treedef.unflatten(sampled), static)
    is_normed = lambda node: isinstance(node, eqx.nn.WeightNorm)  # noqa: E731
    return jax.tree.map(
        lambda new, old: _with_norms(new, old) if is_normed(new) else new, sampled, model, is_leaf=is_normed
    )


def _with_norms(new: eqx.nn.WeightNorm, old: eqx.nn.WeightNorm) -> eqx.nn.WeightNorm:
    """The layer with the norms of its weight as gains, if the weight is new."""
    weight = getattr(new.layer, new.weight_name)
    if weight is getattr(old.layer, old.weight_name):
        return new
    reduced = tuple(i for i, size in enumerate(new.g.shape) if size == 1)
    norms = jnp.sqrt(jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=reduced, keepdims=True))
    return eqx.tree_at(lambda layer: layer.g, new, norms.astype(new.g.dtype))
