from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import recipes
from ..aggregators import AbstractAggregator, LearnedAggregator
from ..optimizers import AbstractOptimizer, LearnedOptimizer, Scaled

LearnedT = TypeVar("LearnedT", bound=LearnedOptimizer | LearnedAggregator)

# Entries of a manifest that say how a trajectory was made, not what the optimizer is.
_IGNORED = {"kind", "T", "num_steps"}

# What a configuration may say, and the originals' defaults.
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
    """The optimizer or aggregator that an original implementation's weights and hyperparameters stand for.

    **Arguments:**

    - `kind`: `"small_fc_lopt"`, `"mulo"` or `"mlp_lopt"` (LOLv2); of aggregators `"lagg_a"`, `"lopt_a"`, `"lagg"` or
        `"lopt"`.
    - `theta`: the original's arrays under its own flat names, for instance `"nn/~/w0"` or `"momentum_decays"`.
    - `config`: its hyperparameters, under the original's names. `kind`, `T` and `num_steps` are ignored; what is absent
        takes the original's default: `hidden_size` 4 (others than `small_fc_lopt`: 32), `hidden_layers` 2, `step_mult`
        and `exp_mult` 0.001 (`mulo`: `step_mult` 0.01), `K` 8 workers, and the decay rates of the recipe. For `mulo`,
        `update_multipliers` has a float for each leaf of the parameters and gives a
        [`lo_components.optimizers.Scaled`][].

    Raises `ValueError`, naming what is wrong, for an unknown kind or configuration key, a missing or unexpected array,
    or an array of the wrong shape.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(sorted(_KINDS))}, got {kind!r}.")
    return _KINDS[kind](dict(theta), {k: v for k, v in config.items() if k not in _IGNORED})


def _small_fc_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    known = _with_defaults(config, _SMALL_FC_LOPT)
    momentum_decays, rms_decays, factored_decays = (
        tuple(known.pop(f"initial_{name}_decays")) for name in ("momentum", "rms", "adafactor")
    )
    if len(rms_decays) != 1:
        raise ValueError(f"`initial_rms_decays` must have one entry, got {rms_decays}.")
    optimizer = recipes.small_fc_lopt(
        momentum_decays=momentum_decays,
        rms_decay=rms_decays[0],
        factored_decays=factored_decays,
        key=jax.random.key(0),
        **known,
    )

    return _filled_with_decays(optimizer, theta)


def _mulo(theta: dict[str, Any], config: dict[str, Any]) -> AbstractOptimizer:
    known = _with_defaults(config, _MULO)
    multipliers = known.pop("update_multipliers")
    optimizer = _small_fc_lopt(theta, known)
    return optimizer if multipliers is None else Scaled(optimizer, jax.tree.map(float, multipliers))


def _mlp_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    known = _with_defaults(config, _MLP_LOPT)
    optimizer = recipes.lolv2(decays=tuple(known.pop("decays")), key=jax.random.key(0), **known)
    return _filled_without_decays(optimizer, theta)


def _aggregator(recipe: Callable[..., LearnedAggregator], defaults: dict[str, Any], filled: Callable) -> Callable:
    """What makes an aggregator of one kind; those that see every worker's delta are made for a number of workers."""

    def make(theta: dict[str, Any], config: dict[str, Any]) -> LearnedAggregator:
        known = _with_defaults(config, defaults)
        for name in ("with_all_grads", "with_avg"):
            if (value := known.pop(name)) != defaults[name]:
                raise ValueError(f"`{name}` must be {defaults[name]} for this `kind`, got {value}.")
        num_workers = known.pop("K")
        workers = (num_workers,) if defaults["with_all_grads"] else ()
        return filled(recipe(*workers, key=jax.random.key(0), **known), theta)

    return make


def _with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise ValueError(f"`config` has an unknown key `{unknown[0]}`; known here: {', '.join(sorted(defaults))}.")
    return {**defaults, **config}


def _filled_with_decays(learner: LearnedT, theta: dict[str, Any]) -> LearnedT:
    def where(learner):
        pipeline = learner.pipeline
        return [*pipeline.head.weights, *pipeline.head.biases, *(a.decays.offset for a in pipeline.accumulators)]

    layers = range(len(learner.pipeline.head.weights))  # type: ignore[reportAttributeAccessIssue]
    names = [f"nn/~/w{i}" for i in layers] + [f"nn/~/b{i}" for i in layers]
    return _filled(learner, where, [*names, "momentum_decays", "rms_decays", "adafactor_decays"], theta)


def _filled_without_decays(learner: LearnedT, theta: dict[str, Any]) -> LearnedT:
    layers = range(len(learner.pipeline.head.weights))  # type: ignore[reportAttributeAccessIssue]
    names = [f"mlp/~/linear_{i}/w" for i in layers] + [f"mlp/~/linear_{i}/b" for i in layers]
    return _filled(learner, lambda o: [*o.pipeline.head.weights, *o.pipeline.head.biases], names, theta)


def _filled(learner: LearnedT, where: Callable, names: list[str], theta: dict[str, Any]) -> LearnedT:
    """`learner` with the arrays that `where` selects replaced by those of `theta`, by name and in order."""
    missing, extra = sorted(set(names) - set(theta)), sorted(set(theta) - set(names))
    if missing:
        raise ValueError(f"`theta` lacks the array `{missing[0]}`; it has: {', '.join(sorted(theta)) or 'none'}.")
    if extra:
        raise ValueError(f"`theta` has an unexpected array `{extra[0]}`; expected: {', '.join(names)}.")
    arrays = []
    for name, current in zip(names, where(learner), strict=True):
        array = jnp.asarray(theta[name])
        if array.shape != current.shape:
            raise ValueError(f"`theta['{name}']` must have shape {current.shape}, got {array.shape}.")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"`theta['{name}']` must be floating point, got {array.dtype}.")
        arrays.append(array.astype(jnp.float32))
    return eqx.tree_at(where, learner, arrays)


_KINDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], AbstractOptimizer | AbstractAggregator]] = {
    "small_fc_lopt": _small_fc_lopt,
    "mulo": _mulo,
    "mlp_lopt": _mlp_lopt,
    "lagg_a": _aggregator(recipes.lagg_a, _LAGG, _filled_with_decays),
    "lopt_a": _aggregator(recipes.lopt_a, _LOPT, _filled_with_decays),
    "lagg": _aggregator(recipes.lagg, _LAGG, _filled_without_decays),
    "lopt": _aggregator(recipes.lopt, _LOPT, _filled_without_decays),
}
