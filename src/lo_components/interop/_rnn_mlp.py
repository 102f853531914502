"""RNN-MLP from the arrays of its original implementation."""

from typing import Any

import jax
import numpy as np

from .. import recipes
from ..optimizers import AbstractOptimizer
from ._arrays import filled, with_defaults

_RNN_MLP = {
    "lstm_hidden_size": 64,
    "hidden_size": 32,
    "hidden_layers": 2,
    "from_mlp_size": 16,
    "from_lstm_size": 18,
    "lstm_to_ff": 17,
    "decays": (0.5, 0.9, 0.99, 0.999, 0.9999),
    "step_mult": 1e-3,
    "exp_mult": 1e-3,
}
_NAMES = {"lstm_hidden_size": "lstm_size", "from_mlp_size": "from_mlp", "from_lstm_size": "from_lstm"}
_NAMES |= {"lstm_to_ff": "to_mlp"}


def rnn_mlp(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = {_NAMES.get(name, name): value for name, value in with_defaults(config, _RNN_MLP).items()}
    options["decays"] = tuple(options["decays"])
    # Initial states have an axis that the original repeats for each tensor.
    theta = {n: np.asarray(x)[0] if n.startswith("lstm_init_state/") else x for n, x in theta.items()}
    return filled(recipes.rnn_mlp(key=jax.random.key(0), **options), _parts, theta)


def _parts(learner: Any) -> tuple[list[str], list[Any]]:
    inner = learner.optimizer
    head = inner.pipeline.head.head
    layers = {
        "rnn_params/rnn/linear": inner.lstm,
        "rnn_to_ff_params/rnn_to_ff": inner.to_mlp,
        "rnn_to_in_params/rnn_to_in": inner.to_lstm,
    }
    arrays = {f"{name}/w": layer.weight for name, layer in layers.items()}
    arrays |= {f"{name}/b": layer.bias for name, layer in layers.items()}
    arrays |= {f"ffmod_params/mlp/~/linear_{i}/w": weight for i, weight in enumerate(head.weights)}
    arrays |= {f"ffmod_params/mlp/~/linear_{i}/b": bias for i, bias in enumerate(head.biases)}
    arrays |= {"initial_from_mlp": inner.from_mlp, "initial_from_lstm": inner.from_lstm}
    arrays |= {"lstm_init_state/hidden": inner.start.hidden, "lstm_init_state/cell": inner.start.cell}
    return list(arrays), list(arrays.values())
