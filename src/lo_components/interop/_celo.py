"""VeLO, Celo, Celo-Adam, Sinv6 and Celo2 from the arrays of their original implementations."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from .. import accumulators as acc
from .. import features as ft
from .. import recipes
from ..heads import IdentityHead
from ..optimizers import (
    AbstractOptimizer,
    ClippedByValue,
    Decayed,
    LearnedOptimizer,
    Named,
    OptaxOptimizer,
    Partitioned,
    Scheduled,
)
from ..pipeline import Pipeline
from ..schedules import LossBuffer, OptaxSchedule
from ..steps import Direction
from ._arrays import filled, with_defaults
from ._celo_arrays import GROUPS, MLP, UNUSED, celo_parts, direction_parts, schedule_parts, velo_parts

_LSTM = {"lstm_hidden_size": 64, "step_mult": 1e-3}
_FF = {"ff_hidden_size": 4, "ff_hidden_layers": 2}
_CELO = {**_LSTM, **_FF, "exp_mult": 1e-3, "train_phase": 2}
_ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "eps_root": 0.0, "bias_correction": True, "lr_mult": 1.0}
_CELO2 = {
    "ff_hidden_size": 8,
    "ff_hidden_layers": 2,
    "orthogonalize": True,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "adam_leaves": (),
    "adam": _ADAM,
}

_VELO = {
    "lstm_hidden_size": 512,
    "param_inits": 256,
    "ff_hidden_size": 4,
    "ff_hidden_layers": 2,
    "exp_mult": 1e-3,
    "step_mult": 1e-3,
    "ff_mult": 100.0,
    "use_bugged_loss_features": False,
    "use_bugged_next_lstm_state": False,
}


def celo(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _CELO)
    phase, lstm_size = options.pop("train_phase"), options.pop("lstm_hidden_size")
    if phase not in (1, 2):
        raise ValueError(f"`train_phase` must be 1 or 2, got {phase}.")
    options = {name.removeprefix("ff_"): value for name, value in options.items()}
    learner = recipes.celo(lstm_size=lstm_size, key=jax.random.key(0), **options)

    # There is a leading axis for several networks, of which the original would mix the weights.
    several = [name for name, x in theta.items() if name.startswith(MLP) and np.shape(x)[:1] != (1,)]
    if several:
        raise ValueError(
            f"`theta['{several[0]}']` must have a first axis of size 1, got shape {np.shape(theta[several[0]])}: only "
            "Celo with `param_inits` 1 is supported, as published."
        )
    theta = {name: np.asarray(x)[0] if name.startswith(MLP) else x for name, x in theta.items()}
    learner = filled(learner, celo_parts, _mlp_arrays(_without_unused(theta), outputs=2))
    return learner if phase == 2 else ClippedByValue(learner.optimizer.optimizer)  # type: ignore[reportAttributeAccessIssue]


def celo_adam(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    return _scheduled(recipes.celo_adam, theta, config)


def sinv6(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    return _scheduled(recipes.sinv6, theta, config)


def velo(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _VELO)
    learner = recipes.velo(
        lstm_size=options["lstm_hidden_size"],
        num_networks=options["param_inits"],
        hidden_size=options["ff_hidden_size"],
        hidden_layers=options["ff_hidden_layers"],
        step_mult=options["step_mult"],
        exp_mult=options["exp_mult"],
        scale=options["ff_mult"],
        buffer=LossBuffer(10 if options["use_bugged_loss_features"] else None),
        recurrent=not options["use_bugged_next_lstm_state"],
        key=jax.random.key(0),
    )

    names = {"lstm_init_state/0": "lstm_init_state/hidden", "lstm_init_state/1": "lstm_init_state/cell"}
    theta = {names.get(name, name): array for name, array in theta.items()}
    # Controls and learning rate have a layer each there.
    for kind in "wb":
        layers = [theta.pop(f"rnn_params/{name}/{kind}", None) for name in ("rnn_to_controls", "step_size")]
        if all(layer is not None for layer in layers):
            theta[f"rnn_params/readout/{kind}"] = np.concatenate([np.asarray(x) for x in layers], axis=-1)
    return filled(learner, velo_parts, _mlp_arrays(_without_unused(theta), outputs=2))


def celo2(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _CELO2)
    adam, leaves = with_defaults(dict(options["adam"]), _ADAM), tuple(options["adam_leaves"])
    rate, decay = options["lr"], options["weight_decay"]
    direction = recipes.celo2_direction(
        orthogonalize=options["orthogonalize"],
        hidden_size=options["ff_hidden_size"],
        hidden_layers=options["ff_hidden_layers"],
        key=jax.random.key(0),
    )
    learned = _with_rate(filled(direction, direction_parts, _mlp_arrays(theta, outputs=1)), rate, decay)
    return (
        Partitioned(_with_rate(_adam(adam), rate * adam["lr_mult"], decay), learned, Named(leaves))
        if leaves
        else learned
    )


def _adam(options: dict[str, Any]) -> AbstractOptimizer:
    names = ("b1", "b2", "eps", "eps_root")
    if options["bias_correction"]:
        return OptaxOptimizer(optax.adam, 1.0, **{name: options[name] for name in names})
    accumulators = acc.Momentum((options["b1"],)), acc.SquaredMomentum((options["b2"],))
    feature = ft.NormalizedMomenta(1, eps=options["eps_root"], eps_outside=options["eps"])
    return LearnedOptimizer(Pipeline(accumulators, feature, IdentityHead(1), Direction(1.0)))


def _with_rate(optimizer: AbstractOptimizer, rate: float, decay: float) -> AbstractOptimizer:
    return Scheduled(Decayed(optimizer, decay), OptaxSchedule(optax.constant_schedule, rate))


def _scheduled(recipe: Callable, theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _LSTM)
    learner = recipe(lstm_size=options["lstm_hidden_size"], step_mult=options["step_mult"], key=jax.random.key(0))
    return filled(learner, schedule_parts, _without_unused(theta))


def _without_unused(theta: dict[str, Any]) -> dict[str, Any]:
    """The arrays that have an effect; initial states, which the original repeats for each tensor, as vectors."""
    found = {name: np.asarray(array) for name, array in theta.items() if name not in UNUSED}
    return {n: x[0] if n.startswith("lstm_init_state/") and x.ndim == 2 else x for n, x in found.items()}


def _mlp_arrays(theta: dict[str, Any], outputs: int) -> dict[str, Any]:
    """The arrays with one matrix for the first layer, and no unused outputs."""
    found = {name: np.asarray(array) for name, array in theta.items()}
    names = [f"{MLP}w0__{i}" for i in range(len(GROUPS))]
    missing = next((name for name in names if name not in found), None)
    if missing:
        raise ValueError(f"`theta` lacks the array `{missing}`; it has: {', '.join(sorted(theta)) or 'none'}.")
    found[f"{MLP}w0"] = np.concatenate([found.pop(name) for name in names], axis=-2)
    last = sum(name.startswith(f"{MLP}b") for name in found) - 1
    for kind in "wb":
        name = f"{MLP}{kind}{last}"
        if name in found:
            found[name] = found[name][..., :outputs]
    return found
