"""STAR optimizers from the arrays of their original implementation."""

import math
from typing import Any

import jax
import numpy as np

from .. import features as ft
from .. import recipes
from ..optimizers import LearnedOptimizer
from ..steps import AbstractStepRule, DirectionMagnitude, Fixed, Magnitude, Pooled, Sum, Times
from ._arrays import filled, with_decays, with_defaults

_STAR = {
    "hidden_size": 4,
    "hidden_layers": 2,
    "step_mult": 1e-3,
    "exp_mult": (1e-3, 1e-3, 1e-3),
    "initial_momentum_decays": (0.9, 0.99, 0.999),
    "initial_rms_decays": (0.999,),
    "initial_adafactor_decays": (0.9, 0.99, 0.999),
    "nominal_stepsize": 0.0,
    "weight_decay": 0.0,
    "nominal_controller": False,
    "regularization_controller": False,
    "nominal_grad_estimator": "AdamAggMo",
    "aggregate_magnitude": False,
    "aggregate_nom_magnitude": False,
    "normalize_blackbox": False,
    "selfnormalize_blackbox": False,
}


def star(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = with_defaults(config, _STAR)
    momentum_decays, rms_decays, factored_decays = (
        tuple(options[f"initial_{name}_decays"]) for name in ("momentum", "rms", "adafactor")
    )
    if len(rms_decays) != 1:
        raise ValueError(f"`initial_rms_decays` must have one entry, got {rms_decays}.")
    learner = recipes.star(
        step_rule=Sum(_black_box(options), _nominal(options, len(momentum_decays)), _weight_decay(options)),
        hidden_size=options["hidden_size"],
        hidden_layers=options["hidden_layers"],
        momentum_decays=momentum_decays,
        rms_decay=rms_decays[0],
        factored_decays=factored_decays,
        key=jax.random.key(0),
    )
    return filled(learner, with_decays, _used(theta, options))


def _black_box(options: dict[str, Any]) -> AbstractStepRule:
    rule: AbstractStepRule = DirectionMagnitude(options["step_mult"], options["exp_mult"][0])
    if options["aggregate_magnitude"]:
        rule = Pooled(rule, (1,))
    if options["normalize_blackbox"]:
        rule = Times(rule, ft.InverseRoot(ft.Squares(), eps=1e-6))
    if options["selfnormalize_blackbox"]:
        rule = Times(rule, ft.TensorMean(ft.Gradient()))
    return rule


def _nominal(options: dict[str, Any], num_momenta: int) -> AbstractStepRule:
    momenta, normalized = ft.Momenta(num_momenta), ft.NormalizedMomenta(num_momenta)
    estimators = {
        "SGD": ft.Gradient(),
        "SGDM": ft.Channel(momenta, -1),
        "AggMo": ft.ChannelMean(momenta),
        "Adam": ft.Channel(normalized, -1),
        "AdamAggMo": ft.ChannelMean(normalized),
    }
    if (name := options["nominal_grad_estimator"]) not in estimators:
        raise ValueError(f"`nominal_grad_estimator` must be one of {', '.join(estimators)}, got {name!r}.")
    step_mult, exp_mult = options["nominal_stepsize"], options["exp_mult"][1]
    rule: AbstractStepRule = Fixed(step_mult * math.exp(exp_mult))
    if options["nominal_controller"]:
        rule = Magnitude(step_mult, exp_mult)
        if options["aggregate_nom_magnitude"]:
            rule = Pooled(rule, (0,))
    return Times(rule, estimators[name])


def _weight_decay(options: dict[str, Any]) -> AbstractStepRule:
    rate, exp_mult = options["weight_decay"], options["exp_mult"][2]
    rule = Magnitude(rate, exp_mult) if options["regularization_controller"] else Fixed(rate)
    return Times(rule, ft.Parameter())


def _used(theta: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The arrays without the outputs that have no effect; the original always has four."""
    outputs = [0, 1] + [i for i, kind in ((2, "nominal"), (3, "regularization")) if options[f"{kind}_controller"]]
    last = options["hidden_layers"]
    return {
        name: np.asarray(array)[..., outputs] if name in (f"nn/~/w{last}", f"nn/~/b{last}") else array
        for name, array in theta.items()
    }
