"""The LSTM optimizer of Andrychowicz et al. from the arrays of their code."""

from typing import Any

import jax

from .. import features as ft
from .. import recipes
from ..optimizers import LearnedOptimizer
from ._arrays import filled, with_defaults

_L2L = {"layers": (20, 20), "preprocess": "LogAndSign", "k": 5, "scale": 0.01}


def l2l_lstm(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = with_defaults(config, _L2L)
    features = {"LogAndSign": ft.LogAndSign(options["k"]), "identity": ft.Gradient()}
    if (name := options["preprocess"]) not in features:
        raise ValueError(f"`preprocess` must be one of {', '.join(features)}, got {name!r}.")
    sizes, scale = tuple(options["layers"]), options["scale"]
    return filled(
        recipes.l2l_lstm(inputs=features[name], sizes=sizes, scale=scale, key=jax.random.key(0)), _parts, theta
    )


def _parts(learner: Any) -> tuple[list[str], list[Any]]:
    (network,), head = learner.pipeline.accumulators, learner.pipeline.head
    arrays = {"linear/w": head.weight, "linear/b": head.bias}
    for i, layer in enumerate(network.layers, 1):
        arrays |= {f"lstm_{i}/w_gates": layer.weight, f"lstm_{i}/b_gates": layer.bias}
    return list(arrays), list(arrays.values())
