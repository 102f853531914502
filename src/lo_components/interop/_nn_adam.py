"""NNAdam from the arrays of its original implementation."""

from typing import Any

import jax
import numpy as np

from ..optimizers import ClippedByValue, NNAdam
from ._arrays import filled, with_defaults

_NN_ADAM = {"output_scale": 0.01, "decay_strength": 0.0, "lstm_hidden_size": 32}


def nn_adam(theta: dict[str, Any], config: dict[str, Any]) -> ClippedByValue:
    options = with_defaults(config, _NN_ADAM)
    learner = NNAdam(
        options["lstm_hidden_size"],
        output_scale=options["output_scale"],
        pull=options["decay_strength"],
        key=jax.random.key(0),
    )
    arrays = {name: np.asarray(array) for name, array in theta.items()}
    # There, initial states have an axis of size 1.
    arrays = {n: x[0] if n.startswith("lstm_init_state/") and x.ndim == 2 else x for n, x in arrays.items()}
    return ClippedByValue(filled(learner, _parts, arrays))


def _parts(learner: Any) -> tuple[list[str], list[Any]]:
    readout = "rnn_to_controls_params/rnn_to_controls"
    arrays = {
        "per_layer_lr": learner.learning_rate,
        "per_layer_beta1": learner.b1,
        "per_layer_beta2": learner.b2,
        "per_layer_epsilon": learner.eps,
        "lstm_init_state/hidden": learner.start.hidden,
        "lstm_init_state/cell": learner.start.cell,
        "rnn_params/rnn/linear/w": learner.lstm.weight,
        "rnn_params/rnn/linear/b": learner.lstm.bias,
        f"{readout}/w": learner.readout.weight,
        f"{readout}/b": learner.readout.bias,
    }
    return list(arrays), list(arrays.values())
