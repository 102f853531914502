from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import recipes
from ..accumulators import Decays
from ..aggregators import AbstractAggregator, LearnedAggregator
from ..heads import MLPHead
from ..optimizers import AbstractOptimizer, LearnedOptimizer, Scaled
from ..steps import DirectionMagnitude
from . import _celo, _celo_writing, _l2l, _nn_adam, _rnn_mlp, _star
from ._arrays import filled, with_decays, with_defaults

LearnedT = TypeVar("LearnedT", bound=LearnedOptimizer | LearnedAggregator)

# Entries of a manifest that describe a recorded trajectory, not the optimizer.
_IGNORED = {"kind", "T", "num_steps", "weights"}

# The hyperparameters that a configuration may have, with the reference implementations' defaults.
_SMALL_FC_LOPT = {
    "hidden_size": 4,
    "hidden_layers": 2,
    "step_mult": 1e-3,
    "exp_mult": 1e-3,
    "initial_momentum_decays": (0.9, 0.99, 0.999),
    "initial_rms_decays": (0.999,),
    "initial_adafactor_decays": (0.9, 0.99, 0.999),
}
_MULO = {**_SMALL_FC_LOPT, "hidden_size": 32, "step_mult": 1e-2, "update_multipliers": None}
_MLP_LOPT = {
    "hidden_size": 32,
    "hidden_layers": 2,
    "step_mult": 1e-3,
    "exp_mult": 1e-3,
    "decays": (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
}
_LOPT = {"hidden_size": 32, "hidden_layers": 2, "step_mult": 1e-3, "exp_mult": 1e-3}
_LOPT |= {"K": 8, "with_all_grads": False, "with_avg": True}
_LAGG = {**_LOPT, "with_all_grads": True, "with_avg": False}


def from_reference(
    kind: str, theta: Mapping[str, np.ndarray | Array], config: Mapping[str, Any]
) -> AbstractOptimizer | AbstractAggregator:
    """Build an optimizer or aggregator from a reference implementation's weights and hyperparameters.

    **Arguments:**

    - `kind`: `"small_fc_lopt"`, `"mulo"`, `"mlp_lopt"` (LOLv2), `"velo"`, `"celo"`, `"celo_adam"`, `"sinv6"`,
        `"celo2"`, `"rnn_mlp"`, `"star"`, `"nn_adam"` or `"l2l_lstm"` for an optimizer; `"lagg_a"`, `"lopt_a"`,
        `"lagg"` or `"lopt"` for an aggregator.
    - `theta`: the arrays under the reference implementation's flat names, such as `"nn/~/w0"` or `"momentum_decays"`,
        for instance the result of [`lo_components.weights.read_arrays`][].
    - `config`: the hyperparameters under the reference implementation's names; `kind`, `T` and `num_steps` are ignored.
        Defaults are those of the reference implementation: `hidden_size` 32 (`small_fc_lopt`: 4), `hidden_layers` 2,
        `step_mult` and `exp_mult` 0.001 (`mulo`: `step_mult` 0.01), `K` 8 workers, and the decay rates of the recipe.
        For `mulo`, `update_multipliers` may give a float for each leaf of the parameters. The others have
        `lstm_hidden_size` (64, `velo`: 512), `ff_hidden_size` (4, `celo2`: 8), `ff_hidden_layers` (2), `step_mult` and
        `exp_mult` (0.001); `celo` `train_phase` (2; 1 leaves out the schedule); `velo` `param_inits` (256), `ff_mult`
        (100), `use_bugged_loss_features` and `use_bugged_next_lstm_state` (`False`); `celo2` `lr` (0.001),
        `weight_decay` (0), `orthogonalize` (`True`), `adam_leaves` (none: the paths of tensors left to Adam) and `adam`
        (its hyperparameters).

    **Returns:** the learner; with `update_multipliers`, wrapped in [`lo_components.optimizers.Scaled`][].

    Raises `ValueError` if `kind` or a key of `config` is unknown, or if an array is missing, unexpected or of the wrong
    shape or dtype.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(sorted(_KINDS))}, got {kind!r}.")
    return _KINDS[kind](dict(theta), {k: v for k, v in config.items() if k not in _IGNORED})


def to_reference(learner: AbstractOptimizer | AbstractAggregator) -> dict[str, np.ndarray]:
    """The weights of a learner under the flat names of its reference implementation: the inverse of `from_reference`.

    Constants are not among them, and neither are the scales, the learning rate, the weight decay or the optimizer of
    other tensors around it: the reference implementation gets these as hyperparameters. Arrays without effect there are
    zeros.

    **Arguments:**

    - `learner`: the result of the recipe `small_fc_lopt`, `mulo`, `lolv2`, `lagg_a`, `lopt_a`, `lagg` or `lopt`, with
        any weights and constants; or that of `velo`, `celo`, `celo_adam`, `sinv6`, `celo2`, `celo2_base` or
        `celo2_direction`, with any weights, sizes and step multipliers.

    Raises `ValueError` if the learner has other parts, or if its step multipliers are meta-learned, for which the
    reference implementation has no arrays.
    """
    inner = learner.optimizer if isinstance(learner, Scaled) else learner
    if (theta := _celo_writing.to_original(inner)) is not None:
        return theta
    if not isinstance(inner, LearnedOptimizer | LearnedAggregator) or not _is_of_reference(inner):
        raise ValueError(
            "`learner` must have the parts of one of the recipes velo, celo, celo_adam, sinv6, celo2, celo2_base, "
            "celo2_direction, small_fc_lopt, mulo, lolv2, lagg_a, lopt_a, lagg and lopt, and step multipliers that are "
            "numbers."
        )
    parts = with_decays(inner) if len(inner.pipeline.accumulators) == 3 else _without_decays(inner)
    return {name: np.asarray(array) for name, array in zip(*parts, strict=True)}


def _is_of_reference(learner: LearnedOptimizer | LearnedAggregator) -> bool:
    """Whether the learner differs from the result of a recipe of the same sizes in numbers and arrays only."""
    pipeline = learner.pipeline
    head, accumulators, rule = pipeline.head, pipeline.accumulators, pipeline.step_rule
    if not isinstance(head, MLPHead) or not isinstance(rule, DirectionMagnitude):
        return False
    if not isinstance(rule.step_mult, float) or not isinstance(rule.exp_mult, float):
        return False
    options: dict[str, Any] = {"hidden_size": head.weights[0].shape[1], "hidden_layers": len(head.weights) - 1}
    options |= {"step_mult": rule.step_mult, "exp_mult": rule.exp_mult, "key": jax.random.key(0)}
    decays = [getattr(accumulator, "decays", None) for accumulator in accumulators]
    initial = [d.initial if isinstance(d, Decays) else () for d in decays]
    match initial:
        case [momentum, [rms], factored] if momentum and len(momentum) == len(factored):
            options |= {"momentum_decays": momentum, "rms_decay": rms, "factored_decays": factored}
            candidates: list[Any] = [recipes.small_fc_lopt(**options), recipes.lopt_a(**options)]
        case [momentum] if momentum:
            candidates = [recipes.lolv2(decays=momentum, **options)]
        case []:
            candidates = [recipes.lopt(**options)]
        case _:
            return False
    # An aggregator that sees each delta has as many more inputs as there are further workers.
    num_workers = 1 + head.in_size - candidates[-1].pipeline.head.in_size
    if isinstance(learner, LearnedAggregator) and num_workers >= 1:
        candidates.append((recipes.lagg_a if initial else recipes.lagg)(num_workers, **options))
    return any(_parts_and_sizes(learner) == _parts_and_sizes(candidate) for candidate in candidates)


def _parts_and_sizes(learner: Any) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(learner), [jnp.shape(x) for x in jax.tree.leaves(learner)]


def _small_fc_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = with_defaults(config, _SMALL_FC_LOPT)
    momentum_decays, rms_decays, factored_decays = (
        tuple(options.pop(f"initial_{name}_decays")) for name in ("momentum", "rms", "adafactor")
    )
    if len(rms_decays) != 1:
        raise ValueError(f"`initial_rms_decays` must have one entry, got {rms_decays}.")
    optimizer = recipes.small_fc_lopt(
        momentum_decays=momentum_decays,
        rms_decay=rms_decays[0],
        factored_decays=factored_decays,
        key=jax.random.key(0),
        **options,
    )

    return _filled_with_decays(optimizer, theta)


def _mulo(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    options = with_defaults(config, _MULO)
    multipliers = options.pop("update_multipliers")
    optimizer = _small_fc_lopt(theta, options)
    return optimizer if multipliers is None else Scaled(optimizer, jax.tree.map(float, multipliers))


def _mlp_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = with_defaults(config, _MLP_LOPT)
    optimizer = recipes.lolv2(decays=tuple(options.pop("decays")), key=jax.random.key(0), **options)
    return _filled_without_decays(optimizer, theta)


def _aggregator(recipe: Callable[..., LearnedAggregator], defaults: dict[str, Any], filled: Callable) -> Callable:
    """A function that builds one kind of aggregator. Kinds that see each delta have a fixed number of workers."""

    def make(theta: dict[str, Any], config: dict[str, Any]) -> LearnedAggregator:
        options = with_defaults(config, defaults)
        for name in ("with_all_grads", "with_avg"):
            if (value := options.pop(name)) != defaults[name]:
                raise ValueError(f"`{name}` must be {defaults[name]} for this `kind`, got {value}.")
        num_workers = options.pop("K")
        workers = (num_workers,) if defaults["with_all_grads"] else ()
        return filled(recipe(*workers, key=jax.random.key(0), **options), theta)

    return make


def _filled_with_decays(learner: LearnedT, theta: dict[str, Any]) -> LearnedT:
    return filled(learner, with_decays, theta)


def _filled_without_decays(learner: LearnedT, theta: dict[str, Any]) -> LearnedT:
    return filled(learner, _without_decays, theta)


def _without_decays(learner: Any) -> tuple[list[str], list[Any]]:
    """The names and the arrays of a learner whose decay rates, if any, are constants."""
    head = learner.pipeline.head
    layers = range(len(head.weights))
    names = [f"mlp/~/linear_{i}/w" for i in layers] + [f"mlp/~/linear_{i}/b" for i in layers]
    return names, [*head.weights, *head.biases]


_KINDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], AbstractOptimizer | AbstractAggregator]] = {
    "celo": _celo.celo,
    "celo2": _celo.celo2,
    "celo_adam": _celo.celo_adam,
    "rnn_mlp": _rnn_mlp.rnn_mlp,
    "sinv6": _celo.sinv6,
    "star": _star.star,
    "nn_adam": _nn_adam.nn_adam,
    "l2l_lstm": _l2l.l2l_lstm,
    "velo": _celo.velo,
    "small_fc_lopt": _small_fc_lopt,
    "mulo": _mulo,
    "mlp_lopt": _mlp_lopt,
    "lagg_a": _aggregator(recipes.lagg_a, _LAGG, _filled_with_decays),
    "lopt_a": _aggregator(recipes.lopt_a, _LOPT, _filled_with_decays),
    "lagg": _aggregator(recipes.lagg, _LAGG, _filled_without_decays),
    "lopt": _aggregator(recipes.lopt, _LOPT, _filled_without_decays),
}
