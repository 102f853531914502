"""VeLO, Celo, Celo-Adam, Sinv6 and Celo2 from the arrays of their original implementations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import accumulators as acc
from .. import features as ft
from .. import recipes
from ..controllers import MixingController
from ..heads import IdentityHead, MixedMLPHead, MLPHead
from ..optimizers import (
    AbstractOptimizer,
    ClippedByValue,
    ControlledOptimizer,
    Decayed,
    LearnedOptimizer,
    Named,
    OptaxOptimizer,
    Partitioned,
    Scheduled,
)
from ..pipeline import Pipeline
from ..schedules import Exponential, LearnedSchedule, Limited, LossBuffer, OptaxSchedule
from ..steps import Direction, DirectionMagnitude
from ._arrays import filled, same_parts, with_defaults

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

# Arrays that have no effect in the original.
_UNUSED = tuple(f"rnn_params/{layer}/{kind}" for layer in ("linear", "rnn_to_controls") for kind in "wb")
# The sizes of the groups of channels, each of which has its own weights in the first layer.
_GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
_MLP = "ff_mod_stack/~/"
# The number of outputs of the MLP, of which the last, or the last two, are unused.
_OUTPUTS = 3
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
    several = [name for name, x in theta.items() if name.startswith(_MLP) and np.shape(x)[:1] != (1,)]
    if several:
        raise ValueError(
            f"`theta['{several[0]}']` must have a first axis of size 1, got shape {np.shape(theta[several[0]])}: only "
            "Celo with `param_inits` 1 is supported, as published."
        )
    theta = {name: np.asarray(x)[0] if name.startswith(_MLP) else x for name, x in theta.items()}
    learner = filled(learner, _celo_parts, _mlp_arrays(_without_unused(theta), outputs=2))
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
    return filled(learner, _velo_parts, _mlp_arrays(_without_unused(theta), outputs=2))


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
    learned = _with_rate(filled(direction, _direction_parts, _mlp_arrays(theta, outputs=1)), rate, decay)
    return (
        Partitioned(_with_rate(_adam(adam), rate * adam["lr_mult"], decay), learned, Named(leaves))
        if leaves
        else learned
    )


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
            return _written(learner, like, _velo_parts, num_networks=head.num_networks)
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
            theta = _written(learner, like, _celo_parts, num_networks=1)
            return theta and {name: x[None] if name.startswith(_MLP) else x for name, x in theta.items()}
        case ClippedByValue(
            optimizer=Scheduled(
                optimizer=OptaxOptimizer(hyperparameters={"learning_rate": float() as step_mult}),
                schedule=Exponential(schedule=LearnedSchedule() as network),
            )
        ):
            like = recipes.celo_adam(lstm_size=_units(network), step_mult=step_mult, key=key)
            return _written(learner, like, _schedule_parts)
        case ClippedByValue(
            optimizer=Scheduled(
                optimizer=LearnedOptimizer(pipeline=Pipeline(step_rule=Direction(step_mult=float() as step_mult))),
                schedule=Limited(schedule=LearnedSchedule() as network),
            )
        ):
            like = recipes.sinv6(lstm_size=_units(network), step_mult=step_mult, key=key)
            return _written(learner, like, _schedule_parts)
        case ClippedByValue(optimizer=LearnedOptimizer(pipeline=Pipeline(head=MLPHead() as head))):
            if head.out_size == 2:  # the first phase of Celo
                unused = Exponential(jax.tree.map(jnp.zeros_like, LearnedSchedule(key=key)), 0.1)
                return to_original(ClippedByValue(Scheduled(learner.optimizer, unused)))
            likes = [recipes.celo2_direction(orthogonalize=x, key=key, **_sizes(head)) for x in (True, False)]
            found = (_written(learner, like, _direction_parts) for like in likes)
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
    if f"{_MLP}w0" in theta:
        pieces = np.split(theta.pop(f"{_MLP}w0"), np.cumsum(_GROUPS)[:-1], axis=-2)
        theta |= {f"{_MLP}w0__{i}": piece for i, piece in enumerate(pieces)}
        last = sum(name.startswith(f"{_MLP}b") for name in theta) - 1
        for name in (f"{_MLP}w{last}", f"{_MLP}b{last}"):
            unused = _OUTPUTS - theta[name].shape[-1]
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
    return filled(learner, _schedule_parts, _without_unused(theta))


def _recurrent(network: Any, readout: str) -> tuple[list[str], list[Any]]:
    """The arrays of a `LearnedSchedule` or a `MixingController`, whose last layer the original calls `readout`."""
    layers = {
        "linear_1": network.rectified,
        "linear_2": network.skip,
        "rnn/linear": network.lstm,
        readout: network.readout,
    }
    arrays = {f"rnn_params/{name}/w": layer.weight for name, layer in layers.items()}
    arrays |= {f"rnn_params/{name}/b": layer.bias for name, layer in layers.items()}
    start = network.start
    arrays |= {"lstm_init_state/hidden": start.hidden, "lstm_init_state/cell": start.cell}
    return list(arrays), list(arrays.values())


def _mlp(head: Any) -> tuple[list[str], list[Any]]:
    layers = range(len(head.weights))
    return [f"{_MLP}w{i}" for i in layers] + [f"{_MLP}b{i}" for i in layers], [*head.weights, *head.biases]


def _velo_parts(learner: Any) -> tuple[list[str], list[Any]]:
    controlled = learner.optimizer
    return _joined(_mlp(controlled.pipeline.head.networks), _recurrent(controlled.controller, "readout"))


def _celo_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _joined(_mlp(learner.optimizer.optimizer.pipeline.head), _schedule_parts(learner))


def _schedule_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _recurrent(learner.optimizer.schedule.schedule, "step_size")


def _direction_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _mlp(learner.optimizer.pipeline.head)


def _joined(*parts: tuple[list[str], list[Any]]) -> tuple[list[str], list[Any]]:
    return [name for names, _ in parts for name in names], [array for _, arrays in parts for array in arrays]


def _without_unused(theta: dict[str, Any]) -> dict[str, Any]:
    """The arrays that have an effect; initial states, which the original repeats for each tensor, as vectors."""
    found = {name: np.asarray(array) for name, array in theta.items() if name not in _UNUSED}
    return {n: x[0] if n.startswith("lstm_init_state/") and x.ndim == 2 else x for n, x in found.items()}


def _mlp_arrays(theta: dict[str, Any], outputs: int) -> dict[str, Any]:
    """The arrays with one matrix for the first layer, and no unused outputs."""
    found = {name: np.asarray(array) for name, array in theta.items()}
    names = [f"{_MLP}w0__{i}" for i in range(len(_GROUPS))]
    missing = next((name for name in names if name not in found), None)
    if missing:
        raise ValueError(f"`theta` lacks the array `{missing}`; it has: {', '.join(sorted(theta)) or 'none'}.")
    found[f"{_MLP}w0"] = np.concatenate([found.pop(name) for name in names], axis=-2)
    last = sum(name.startswith(f"{_MLP}b") for name in found) - 1
    for kind in "wb":
        name = f"{_MLP}{kind}{last}"
        if name in found:
            found[name] = found[name][..., :outputs]
    return found
