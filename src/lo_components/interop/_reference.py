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

# Entries of a manifest that describe a recorded trajectory, not the optimizer.
_IGNORED = {"kind", "T", "num_steps"}

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

    - `kind`: `"small_fc_lopt"`, `"mulo"` or `"mlp_lopt"` (LOLv2) for an optimizer; `"lagg_a"`, `"lopt_a"`, `"lagg"` or
        `"lopt"` for an aggregator.
    - `theta`: the arrays under the reference implementation's flat names, such as `"nn/~/w0"` or `"momentum_decays"`.
    - `config`: the hyperparameters under the reference implementation's names; `kind`, `T` and `num_steps` are ignored.
        Defaults are those of the reference implementation: `hidden_size` 32 (`small_fc_lopt`: 4), `hidden_layers` 2,
        `step_mult` and `exp_mult` 0.001 (`mulo`: `step_mult` 0.01), `K` 8 workers, and the decay rates of the recipe.
        For `mulo`, `update_multipliers` may give a float for each leaf of the parameters.

    **Returns:** the learner; with `update_multipliers`, wrapped in [`lo_components.optimizers.Scaled`][].

    Raises `ValueError` if `kind` or a key of `config` is unknown, or if an array is missing, unexpected or of the wrong
    shape or dtype.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(sorted(_KINDS))}, got {kind!r}.")
    return _KINDS[kind](dict(theta), {k: v for k, v in config.items() if k not in _IGNORED})


def _small_fc_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = _with_defaults(config, _SMALL_FC_LOPT)
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
    options = _with_defaults(config, _MULO)
    multipliers = options.pop("update_multipliers")
    optimizer = _small_fc_lopt(theta, options)
    return optimizer if multipliers is None else Scaled(optimizer, jax.tree.map(float, multipliers))


def _mlp_lopt(theta: dict[str, Any], config: dict[str, Any]) -> LearnedOptimizer:
    options = _with_defaults(config, _MLP_LOPT)
    optimizer = recipes.lolv2(decays=tuple(options.pop("decays")), key=jax.random.key(0), **options)
    return _filled_without_decays(optimizer, theta)


def _aggregator(recipe: Callable[..., LearnedAggregator], defaults: dict[str, Any], filled: Callable) -> Callable:
    """A function that builds one kind of aggregator. Kinds that see each delta have a fixed number of workers."""

    def make(theta: dict[str, Any], config: dict[str, Any]) -> LearnedAggregator:
        options = _with_defaults(config, defaults)
        for name in ("with_all_grads", "with_avg"):
            if (value := options.pop(name)) != defaults[name]:
                raise ValueError(f"`{name}` must be {defaults[name]} for this `kind`, got {value}.")
        num_workers = options.pop("K")
        workers = (num_workers,) if defaults["with_all_grads"] else ()
        return filled(recipe(*workers, key=jax.random.key(0), **options), theta)

    return make


def _with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise ValueError(f"`config` has an unknown key `{unknown[0]}`; expected: {', '.join(sorted(defaults))}.")
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
    """The learner with the arrays that `where` selects replaced by the arrays of `theta` with these names."""
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
