"""Pipelines that several recipes use."""

from typing import Unpack

from jaxtyping import Array, Float, PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..heads import MLPHead
from ..pipeline import Pipeline
from ..steps import AbstractStepRule, DirectionMagnitude
from ._options import HeadOptions

DECAYS = (0.9, 0.99, 0.999)


def with_factored_features(
    inputs: ft.AbstractFeature,
    *,
    momentum_decays: tuple[float, ...] = DECAYS,
    rms_decay: float = 0.999,
    factored_decays: tuple[float, ...] = DECAYS,
    key: PRNGKeyArray,
    **options: Unpack[HeadOptions],
) -> Pipeline:
    """The pipeline of small_fc_lopt, with `inputs` in place of the gradient as its first feature."""
    accumulators, normalized = with_learned_decays(inputs, momentum_decays, rms_decay, factored_decays)
    return with_mlp(accumulators, normalized, key=key, **options)


def with_learned_decays(
    inputs: ft.AbstractFeature,
    momentum_decays: tuple[float, ...] = DECAYS,
    rms_decay: float = 0.999,
    factored_decays: tuple[float, ...] = DECAYS,
) -> tuple[tuple[acc.AbstractAccumulator, ...], ft.AbstractFeature]:
    """The accumulators of small_fc_lopt, and its features without the time."""
    count = len(momentum_decays)
    if len(factored_decays) != count:
        raise ValueError(
            f"`factored_decays` must have as many entries as `momentum_decays`, got {len(factored_decays)} and {count}."
        )
    normalized = ft.Concat(
        inputs,
        ft.Parameter(),
        ft.Momenta(count),
        ft.Squares(),
        ft.NormalizedMomenta(count, eps=1e-6),
        ft.InverseRoot(ft.Squares(), eps=1e-6),
        ft.FactoredGradient(count),
        ft.RowSquares(count),
        ft.ColumnSquares(count),
        ft.InverseRoot(ft.RowSquares(count), eps=1e-8),
        ft.InverseRoot(ft.ColumnSquares(count), eps=1e-8),
        ft.FactoredMomenta(count, eps=1e-6),
    )
    accumulators = (
        acc.Momentum(momentum_decays, learnable=True),
        acc.SquaredMomentum((rms_decay,), learnable=True),
        acc.FactoredSquares(factored_decays, learnable=True),
    )
    return accumulators, normalized


def with_mlp(
    accumulators: tuple[acc.AbstractAccumulator, ...],
    normalized: ft.AbstractFeature,
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float | Float[Array, ""] = 1e-3,
    exp_mult: float | Float[Array, ""] = 1e-3,
    key: PRNGKeyArray,
) -> Pipeline:
    """A pipeline of normalized features, a time embedding, an MLP, and a step of direction and magnitude."""
    step_rule = DirectionMagnitude(step_mult, exp_mult)
    return with_step(accumulators, normalized, step_rule, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)


def with_step(
    accumulators: tuple[acc.AbstractAccumulator, ...],
    normalized: ft.AbstractFeature,
    step_rule: AbstractStepRule,
    *,
    hidden_size: int,
    hidden_layers: int,
    key: PRNGKeyArray,
) -> Pipeline:
    """A pipeline of normalized features, a time embedding, an MLP, and any step rule."""
    features = ft.Concat(ft.RMSNormalized(normalized, eps=1e-5), ft.TimeEmbedding())
    return Pipeline(
        accumulators=accumulators,
        features=features,
        head=MLPHead(features.size, step_rule.in_size, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key),
        step_rule=step_rule,
    )
