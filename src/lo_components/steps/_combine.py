"""Step rules that are made of others."""

import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..features import AbstractFeature
from ..parametrization import UpdateRule
from ._base import AbstractStepRule


class Sum(AbstractStepRule):
    r"""$\Delta p = \sum_i \Delta p_i$: the updates of several rules, each of which takes its own outputs of the head.

    Parametrizations scale the sum like the update of the first rule.
    """

    rules: tuple[AbstractStepRule, ...]

    def __init__(self, first: AbstractStepRule, *others: AbstractStepRule):
        """**Arguments:**

        - `first`: the rule that takes the first outputs.
        - `others`: the rules that take the next ones, in order.
        """
        self.rules = (first, *others)

    @property
    def in_size(self) -> int:
        return sum(rule.in_size for rule in self.rules)

    @property
    def pointwise(self) -> bool:
        return all(rule.pointwise for rule in self.rules)

    @property
    def requires(self) -> frozenset[type]:
        return frozenset().union(*(rule.requires for rule in self.rules))

    @property
    def update_rule(self) -> UpdateRule:
        return self.rules[0].update_rule

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        updates, start = [], 0
        for rule in self.rules:
            updates.append(rule(out[start : start + rule.in_size], view))
            start += rule.in_size
        return functools.reduce(jnp.add, updates)


class Times(AbstractStepRule):
    r"""$\Delta p = x\, \Delta p'$: the update of a rule, times a feature of one channel.

    `Times(rule, InverseRoot(Squares(), 1e-6))` preconditions an update; `Times(Magnitude(), Parameter())` is weight
    decay of learned strength.

    Raises `ValueError` if the feature does not have one channel, or if the channel is normalized over the tensor.
    """

    rule: AbstractStepRule
    feature: AbstractFeature

    def __init__(self, rule: AbstractStepRule, feature: AbstractFeature):
        """**Arguments:**

        - `rule`: the rule, which gives $\\Delta p'$.
        - `feature`: $x$.
        """
        self.rule = rule
        self.feature = feature

    def __check_init__(self):
        if self.feature.size != 1:
            raise ValueError(f"`feature` must have one channel, got {self.feature.size}.")

    @property
    def in_size(self) -> int:
        return self.rule.in_size

    @property
    def pointwise(self) -> bool:
        return self.rule.pointwise and self.feature.pointwise

    @property
    def requires(self) -> frozenset[type]:
        return self.rule.requires | self.feature.requires

    @property
    def update_rule(self) -> UpdateRule:
        return self.rule.update_rule

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        (channels,) = self.feature(view)
        if channels.mean_square is not None:  # which, in a block, is not that of the tensor
            raise ValueError("`feature` must not be normalized by its root mean square over the tensor.")
        return self.rule(out, view) * channels.scaled()[0]


class Pooled(AbstractStepRule):
    """Replaces some outputs of the head by their means over the tensor, so that a whole tensor has one magnitude.

    Raises `ValueError` if `rule` does not take all of these outputs.

    ??? cite "Source"
        The options `aggregate_magnitude` and `aggregate_nom_magnitude` of STAR (arXiv 2209.11208).
    """

    rule: AbstractStepRule
    outputs: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, rule: AbstractStepRule, outputs: tuple[int, ...]):
        """**Arguments:**

        - `rule`: the rule that takes the outputs.
        - `outputs`: the indices of those to replace.
        """
        self.rule = rule
        self.outputs = outputs

    def __check_init__(self):
        if not all(0 <= i < self.rule.in_size for i in self.outputs):
            raise ValueError(f"`outputs` must lie between 0 and {self.rule.in_size - 1}, got {self.outputs}.")

    @property
    def in_size(self) -> int:
        return self.rule.in_size

    @property
    def pointwise(self) -> bool:
        return self.rule.pointwise and not self.outputs

    @property
    def requires(self) -> frozenset[type]:
        return self.rule.requires

    @property
    def update_rule(self) -> UpdateRule:
        return self.rule.update_rule

    def __call__(self, out: Float[Array, "in_size *shape"], view: TensorView) -> Float[Array, "*shape"]:
        means = jnp.broadcast_to(view.spread(view.means(out)), out.shape)
        pooled = [means[i] if i in self.outputs else out[i] for i in range(self.in_size)]
        return self.rule(jnp.stack(pooled), view)
