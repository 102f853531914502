"""VeLO, Celo, Celo-Adam, Sinv6 and Celo2 as arrays of their original implementations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import recipes
from ..controllers import MixingController
from ..heads import MixedMLPHead, MLPHead
from ..optimizers import (
    ClippedByValue,
    ControlledOptimizer,
    Decayed,
    LearnedOptimizer,
    OptaxOptimizer,
    Partitioned,
    Scheduled,
)
from ..pipeline import Pipeline
from ..schedules import Exponential, LearnedSchedule, Limited
from ..steps import Direction, DirectionMagnitude
from ._arrays import same_parts
from ._celo_arrays import GROUPS, MLP, OUTPUTS, celo_parts, direction_parts, schedule_parts, velo_parts


def to_original(learner: Any) -> dict[str, np.ndarray] | None:
    """The arrays under the original's names, those without effect as zeros; `None` for other learners."""
    key = jax.random.key(0)
    match learner:
        case ClippedByValue(
            optimizer=ControlledOptimizer(
                controller=MixingController() as controller,
                pipeline=Pipeline(
                    head=MixedMLPHead() as head,
                    step_rule=DirectionMagnitude(step_mult=float() as step_mult, exp_mult=float() as exp_mult),
                ),
            )
        ) if controller.buffer.num_steps in (None, 10):
            like = recipes.velo(
                **_sizes(head.networks),
                lstm_size=_units(controller),
                num_networks=head.num_networks,
                step_mult=step_mult,
                exp_mult=exp_mult,
                scale=head.scale,
                buffer=controller.buffer,
                recurrent=controller.recurrent,
                key=key,
            )
            return _written(learner, like, velo_parts, num_networks=head.num_networks)
        case ClippedByValue(
            optimizer=Scheduled(
                optimizer=LearnedOptimizer(
                    pipeline=Pipeline(
                        head=MLPHead() as head,
                        step_rule=DirectionMagnitude(step_mult=float() as step_mult, exp_mult=float() as exp_mult),
                    )
                ),
                schedule=Exponential(schedule=LearnedSchedule() as network),
            )
        ):
            options = {**_sizes(head), "step_mult": step_mult, "exp_mult": exp_mult}
            like = recipes.celo(lstm_size=_units(network), key=key, **options)
            theta = _written(learner, like, celo_parts, num_networks=1)
            return theta and {name: x[None] if name.startswith(MLP) else x for name, x in theta.items()}
        case ClippedByValue(
            optimizer=Scheduled(
                optimizer=OptaxOptimizer(hyperparameters={"learning_rate": float() as step_mult}),
                schedule=Exponential(schedule=LearnedSchedule() as network),
            )
        ):
            like = recipes.celo_adam(lstm_size=_units(network), step_mult=step_mult, key=key)
            return _written(learner, like, schedule_parts)
        case ClippedByValue(
            optimizer=Scheduled(
                optimizer=LearnedOptimizer(pipeline=Pipeline(step_rule=Direction(step_mult=float() as step_mult))),
                schedule=Limited(schedule=LearnedSchedule() as network),
            )
        ):
            like = recipes.sinv6(lstm_size=_units(network), step_mult=step_mult, key=key)
            return _written(learner, like, schedule_parts)
        case ClippedByValue(optimizer=LearnedOptimizer(pipeline=Pipeline(head=MLPHead() as head))):
            if head.out_size == 2:  # the first phase of Celo
                unused = Exponential(jax.tree.map(jnp.zeros_like, LearnedSchedule(key=key)), 0.1)
                return to_original(ClippedByValue(Scheduled(learner.optimizer, unused)))
            likes = [recipes.celo2_direction(orthogonalize=x, key=key, **_sizes(head)) for x in (True, False)]
            found = (_written(learner, like, direction_parts) for like in likes)
            return next((theta for theta in found if theta is not None), None)
        case Scheduled(optimizer=Decayed(optimizer=ClippedByValue(optimizer=LearnedOptimizer()) as direction)):
            return to_original(direction)
        case Partitioned(optimizer=Scheduled() as first, rest=rest):
            theta = to_original(first)
            return to_original(rest) if theta is None and isinstance(rest, Scheduled) else theta
    return None


def _written(
    learner: Any, like: Any, parts: Callable[[Any], tuple[list[str], list[Any]]], num_networks: int = 0
) -> dict[str, np.ndarray] | None:
    """The inverse of `_without_unused` and `_mlp_arrays`; `None` unless the learner has the parts of `like`."""
    if not same_parts(learner, like):
        return None
    theta = {name: np.asarray(array) for name, array in zip(*parts(learner), strict=True)}
    for name in [name for name in theta if name.startswith("lstm_init_state/")]:
        theta[name] = theta[name][None]
    if f"{MLP}w0" in theta:
        pieces = np.split(theta.pop(f"{MLP}w0"), np.cumsum(GROUPS)[:-1], axis=-2)
        theta |= {f"{MLP}w0__{i}": piece for i, piece in enumerate(pieces)}
        last = sum(name.startswith(f"{MLP}b") for name in theta) - 1
        for name in (f"{MLP}w{last}", f"{MLP}b{last}"):
            unused = OUTPUTS - theta[name].shape[-1]
            theta[name] = np.concatenate(
                [theta[name], np.zeros((*theta[name].shape[:-1], unused), np.float32)], axis=-1
            )
    for kind in "wb":
        if (readout := theta.pop(f"rnn_params/readout/{kind}", None)) is not None:
            controls, rate = np.split(readout, [num_networks], axis=-1)
            theta |= {f"rnn_params/rnn_to_controls/{kind}": controls, f"rnn_params/step_size/{kind}": rate}
        elif num_networks:
            theta[f"rnn_params/rnn_to_controls/{kind}"] = np.zeros_like(theta[f"rnn_params/step_size/{kind}"])
        if f"rnn_params/linear_1/{kind}" in theta:
            theta[f"rnn_params/linear/{kind}"] = np.zeros_like(theta[f"rnn_params/linear_1/{kind}"])
    return theta


def _sizes(head: MLPHead) -> dict[str, int]:
    return {"hidden_size": head.weights[0].shape[-1], "hidden_layers": len(head.weights) - 1}


def _units(network: LearnedSchedule | MixingController) -> int:
    return network.skip.weight.shape[1]
