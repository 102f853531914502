"""Celo, Celo-Adam, Sinv6 and Celo2 from the arrays of their original implementations."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import accumulators as acc
from .. import features as ft
from .. import recipes
from ..heads import IdentityHead
from ..optimizers import AbstractOptimizer, Decayed, LearnedOptimizer, Named, OptaxOptimizer, Scheduled
from ..pipeline import Pipeline
from ..schedules import OptaxSchedule
from ..steps import Direction
from ._arrays import filled, with_defaults

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

_SCHEDULE = {
    "rnn_params/linear_2/w": lambda s: s.skip.weight,
    "rnn_params/linear_2/b": lambda s: s.skip.bias,
    "rnn_params/linear_1/w": lambda s: s.hidden.weight,
    "rnn_params/linear_1/b": lambda s: s.hidden.bias,
    "rnn_params/rnn/linear/w": lambda s: s.lstm.weight,
    "rnn_params/rnn/linear/b": lambda s: s.lstm.bias,
    "lstm_init_state/hidden": lambda s: s.lstm.start.hidden,
    "lstm_init_state/cell": lambda s: s.lstm.start.cell,
    "rnn_params/step_size/w": lambda s: s.readout.weight,
    "rnn_params/step_size/b": lambda s: s.readout.bias,
}
# Arrays that have no effect in the original.
_DEAD = ("rnn_params/linear/w", "rnn_params/linear/b", "rnn_params/rnn_to_controls/w", "rnn_params/rnn_to_controls/b")


def celo(theta: dict[str, Any], config: Mapping[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _CELO)
    phase = options.pop("train_phase")
    if phase not in (1, 2):
        raise ValueError(f"`train_phase` must be 1 or 2, got {phase}.")
    lstm_size = options.pop("lstm_hidden_size")
    options = {name.removeprefix("ff_"): value for name, value in options.items()}
    learner = recipes.celo(lstm_size=lstm_size, key=jax.random.key(0), **options)
    wheres = {**_mlp(lambda o: o.optimizer.optimizer.pipeline.head, options["hidden_layers"]), **_schedule_of(learner)}
    learner = filled(learner, wheres, _merged(theta, outputs=2))
    return learner if phase == 2 else eqx.tree_at(lambda o: o.optimizer, learner, learner.optimizer.optimizer)


def celo_adam(theta: dict[str, Any], config: Mapping[str, Any]) -> AbstractOptimizer:
    return _scheduled(recipes.celo_adam, theta, config)


def sinv6(theta: dict[str, Any], config: Mapping[str, Any]) -> AbstractOptimizer:
    return _scheduled(recipes.sinv6, theta, config)


def celo2(theta: dict[str, Any], config: Mapping[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _CELO2)
    adam = with_defaults(options["adam"], _ADAM)
    size, layers = options["ff_hidden_size"], options["ff_hidden_layers"]
    key, decay, rate = jax.random.key(0), options["weight_decay"], options["lr"]
    direction = recipes.celo2_direction(
        orthogonalize=options["orthogonalize"], hidden_size=size, hidden_layers=layers, key=key
    )
    direction = filled(direction, _mlp(lambda o: o.optimizer.pipeline.head, layers), _merged(theta, outputs=1))
    learned = _with_rate(direction, rate, decay)
    if not options["adam_leaves"]:
        return learned
    leaves = tuple(options["adam_leaves"])
    return recipes.Partitioned


def _scheduled(recipe: Callable, theta: dict[str, Any], config: Mapping[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _LSTM)
    learner = recipe(lstm_size=options["lstm_hidden_size"], step_mult=options["step_mult"], key=jax.random.key(0))
    return filled(learner, _schedule_of(learner), _merged(theta, outputs=0))
