"""Common mistakes, each of which must raise one short sentence. Run by tests/test_errors.py.

It runs in a process of its own, without the type checks of the test suite, whose long messages would come first.
"""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import lo_components as loc

warnings.simplefilter("ignore")
KEY = jax.random.key(0)
MODEL = [loc.nn.TransformerLM(100, width=16, depth=12, heads=4, key=KEY), jax.nn.relu]
PARAMS = eqx.filter(MODEL, eqx.is_inexact_array)
OPTIMIZER = loc.recipes.small_fc_lopt(key=KEY)
TX = loc.optimizers.as_optax(OPTIMIZER)
STATE = TX.init(PARAMS)
FIRST = lambda tree: jax.tree.leaves(tree)[0]  # noqa: E731

QUADRATIC = loc.tasks.Quadratic({"w": jnp.ones(3)})
PAIR = {"w": jnp.ones(3), "b": jnp.ones(3)}


class NeedsLength(loc.AbstractFeature):
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        return (loc.features.Channels(view.spread((view.step / view.required("num_steps"))[None])),)


def with_feature(feature):
    head = loc.heads.LinearHead(feature.size, 1, key=KEY)
    return loc.LearnedOptimizer(loc.Pipeline((), feature, head, loc.steps.Direction()))


def one_update(optimizer, grads=PARAMS, params=PARAMS, **context):
    tx = loc.optimizers.as_optax(optimizer)
    return tx.update(grads, tx.init(params), params, **context)


MISTAKES = {
    "init of a model with functions in it": lambda: TX.init(MODEL),
    "an integer leaf": lambda: TX.init({"w": jnp.ones(3), "steps": jnp.arange(3)}),
    "a Python number as a leaf": lambda: TX.init({"w": jnp.ones(3), "scale": 1.0}),
    "one None in the gradients": lambda: TX.update(eqx.tree_at(FIRST, PARAMS, None), STATE, PARAMS),
    "a gradient of another shape": lambda: TX.update(eqx.tree_at(FIRST, PARAMS, jnp.ones(7)), STATE, PARAMS),
    "gradients of the whole model": lambda: TX.update(MODEL, STATE, PARAMS),
    "no parameters": lambda: TX.update(PARAMS, STATE),
    "the state of another model": lambda: TX.update(PARAMS, TX.init({"w": jnp.ones(3)}), PARAMS),
    "the state of another optimizer": lambda: TX.update(PARAMS, optax.adam(1e-3).init(PARAMS), PARAMS),
    "the state of another recipe": lambda: TX.update(PARAMS, loc.recipes.lolv2(key=KEY).init(PARAMS), PARAMS),
    "a recipe instead of its result": lambda: loc.optimizers.as_optax(loc.recipes.small_fc_lopt),
    "a recipe inside a wrapper": lambda: loc.optimizers.Clipped(loc.recipes.small_fc_lopt, 1.0),
    "an aggregator in as_optax": lambda: loc.optimizers.as_optax(loc.aggregators.Mean()),
    "a learned aggregator in as_optax": lambda: loc.optimizers.as_optax(loc.recipes.lopt_a(key=KEY)),
    "theta alone": lambda: loc.optimizers.as_optax(loc.theta(OPTIMIZER)),
    "Clipped with its arguments exchanged": lambda: loc.optimizers.Clipped(1.0, OPTIMIZER),
    "Scaled with its arguments exchanged": lambda: loc.optimizers.Scaled({"w": 1.0}, OPTIMIZER),
    "scales of another model": lambda: one_update(loc.optimizers.Scaled(OPTIMIZER, {"w": 1.0})),
    "one scale too few": lambda: one_update(
        loc.optimizers.Scaled(OPTIMIZER, {"w": 1.0}),
        PAIR,
        PAIR,
    ),
    "one scale too many": lambda: one_update(
        loc.optimizers.Scaled(OPTIMIZER, {"w": 1.0, "b": 1.0}), {"w": jnp.ones(3)}, {"w": jnp.ones(3)}
    ),
    "widths as scales": lambda: one_update(
        loc.optimizers.Scaled(
            OPTIMIZER, jax.tree.map(lambda p: loc.parametrization.WidthSpec(p.shape, "vector"), PARAMS)
        )
    ),
    "muP inside optax.flatten": lambda: optax.flatten(
        loc.optimizers.as_optax(loc.optimizers.Scaled(OPTIMIZER, jax.tree.map(lambda p: 1.0, PARAMS)))
    ).init(PARAMS),
    "one loss per example": lambda: TX.update(PARAMS, STATE, PARAMS, value=jnp.ones(7)),
    "a feature that needs the length of training": lambda: one_update(with_feature(NeedsLength())),
    "a feature of aggregators in an optimizer": lambda: one_update(with_feature(loc.features.WorkerDeltas(4))),
    "something else as optimizer": lambda: loc.optimizers.OptaxOptimizer(PARAMS),
    "an optimizer in LocalRound's place of an aggregator": lambda: loc.unroll.LocalRound(4, 2).init(OPTIMIZER, PARAMS),
    "an aggregator in a gradient step": lambda: loc.unroll.GradientStep().init(loc.aggregators.Mean(), PARAMS),
    "something else as an outer optimizer": lambda: loc.aggregators.OuterOptimizer(loc.aggregators.Mean()),
    "an optimizer as aggregator": lambda: loc.aggregators.Screened(OPTIMIZER),
    "a seed instead of a key": lambda: loc.meta.evaluate(optax.sgd(0.1), QUADRATIC, num_steps=2, key=0),
    "a number of steps that is not whole": lambda: loc.meta.evaluate(optax.sgd(0.1), QUADRATIC, num_steps=2.5, key=KEY),
    "the task and the learner exchanged": lambda: loc.meta.evaluate(QUADRATIC, OPTIMIZER, num_steps=2, key=KEY),
    "deltas without workers": lambda: loc.aggregators.Mean().aggregate(
        PARAMS, loc.aggregators.Mean().init(PARAMS), PARAMS
    ),
}


def message(mistake) -> str | None:
    try:
        mistake()
    except (TypeError, ValueError) as error:
        return str(error)
    return None


if __name__ == "__main__":
    print(json.dumps({name: message(mistake) for name, mistake in MISTAKES.items()}))
