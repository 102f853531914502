from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, Adam, assert_close, normal_tree
from jaxtyping import Array, Float

from lo_components import recipes, theta
from lo_components.optimizers import AbstractOptimizer, OptaxOptimizer, Scaled, StepContext, as_optax
from lo_components.parametrization import ORTHOGONALIZED, PROPORTIONAL, SCALE_FREE, RuleByRank, every_leaf

SHAPES = {"w": (3, 4), "b": (4,)}


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def problem(getkey):
    return normal_tree(SHAPES, getkey()), [normal_tree(SHAPES, getkey()) for _ in range(3)]


def _run(init, update, params, grads):
    state = init(params)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_learned_optimizer_trains_an_equinox_model_inside_a_chain(getkey):
    model = eqx.nn.MLP(2, 1, 8, 1, key=getkey())
    x = jax.random.normal(getkey(), (32, 2))
    y = x[:, :1] * 0.5 + 0.3
    # Weights that make the direction the first channel, relu(x) - relu(-x): the normalized gradient.
    learned = recipes.lolv2(hidden_size=2, decays=(0.9,), step_mult=0.02, key=getkey())
    head = learned.pipeline.head
    first = jnp.zeros_like(head.weights[0]).at[0, 0].set(1.0).at[0, 1].set(-1.0)
    second = jnp.zeros_like(head.weights[1]).at[0, 0].set(1.0).at[1, 1].set(1.0)
    third = jnp.zeros_like(head.weights[2]).at[0, 0].set(1.0).at[1, 0].set(-1.0)
    learned = eqx.tree_at(lambda o: o.pipeline.head.weights, learned, (first, second, third))
    transformation = optax.chain(optax.clip_by_global_norm(1.0), as_optax(learned))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @eqx.filter_jit
    def train_step(params, state):
        def loss_fn(params):
            return jnp.mean(jnp.square(jax.vmap(eqx.combine(params, static))(x) - y))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = transformation.update(grads, state, params, value=loss)
        return loss, optax.apply_updates(params, updates), state

    state = transformation.init(params)
    losses = []
    for _ in range(40):
        loss, params, state = train_step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


def test_as_optax_gives_the_optimizers_own_updates(problem):
    params, grads = problem
    learned = recipes.lolv2(hidden_size=2, decays=(0.5, 0.9), key=jax.random.key(0))
    transformation = as_optax(learned)
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    ours = _run(learned.init, eqx.filter_jit(learned.update), params, grads)
    assert_close(_run(transformation.init, jax.jit(transformation.update), params, grads), ours)


@pytest.fixture
def learned():
    return recipes.small_fc_lopt(hidden_size=2, key=jax.random.key(0))


def test_optax_walks_the_state(learned, problem):
    params, _ = problem
    transformation = as_optax(learned)
    state = optax.chain(optax.identity(), transformation).init(params)
    assert int(optax.tree.get(state, "step")) == 0
    assert jax.tree.map(jnp.shape, optax.tree.get(state, "m")) == {"w": (3, 3, 4), "b": (3, 4)}
    assert int(optax.tree.get(optax.tree.set(state, step=jnp.asarray(5)), "step")) == 5
    # The usual way to find out which arrays of a state are sharded like which parameter.
    named = optax.tree_map_params(
        transformation,
        lambda _, name: name,
        transformation.init(params),
        {"w": "W", "b": "B"},
        transform_non_params=lambda _: "none",
    )
    assert named.step == "none"
    assert all(tree == {"w": "W", "b": "B"} for tree in _trees(named.accumulators))


def _trees(accumulators):
    return jax.tree.leaves(accumulators, is_leaf=lambda x: isinstance(x, dict))


def test_states_consist_of_named_tuples_in_the_structure_of_the_parameters(learned, problem):
    """Flax's serialization walks these and dictionaries, but no other classes; NNX rebuilds trees by their keys."""
    params, _ = problem

    def walk(node):
        assert isinstance(node, tuple | dict | jax.Array), type(node)
        children = node.values() if isinstance(node, dict) else node if isinstance(node, tuple) else ()
        for child in children:
            walk(child)

    state = as_optax(learned).init(params)
    walk(state)
    assert all(jax.tree.structure(tree) == jax.tree.structure(params) for tree in _trees(state.accumulators))
    # Orbax refuses arrays without elements.
    assert all(x.size for x in jax.tree.leaves(state))


def test_inject_hyperparams_around_a_learned_optimizer(problem):
    params, grads = problem

    @optax.inject_hyperparams
    def make(step_mult):
        return as_optax(recipes.small_fc_lopt(hidden_size=2, step_mult=step_mult, key=jax.random.key(0)))

    transformation = make(optax.linear_schedule(0.01, 0.0, 2))
    params, state = _run(transformation.init, jax.jit(transformation.update), params, grads)
    assert float(state.hyperparams["step_mult"]) == 0.0


PART = {"w": True, "b": False}


@pytest.mark.parametrize(
    "partly",
    [
        lambda tx: optax.masked(tx, PART),
        lambda tx: optax.partition({True: tx, False: optax.set_to_zero()}, PART),
        lambda tx: optax.chain(optax.masked(optax.set_to_zero(), {"w": False, "b": True}), optax.masked(tx, PART)),
        lambda tx: optax.MultiSteps(optax.masked(tx, PART), 1).gradient_transformation(),
    ],
)
def test_scales_of_the_whole_model_work_where_a_part_is_frozen(partly, learned, problem):
    params, grads = problem
    transformation = partly(as_optax(Scaled(learned, {"w": 0.5, "b": 3.0})))
    updates, _ = transformation.update(grads[0], transformation.init(params), params)
    alone, _ = learned.update({"w": grads[0]["w"]}, learned.init({"w": params["w"]}), {"w": params["w"]})
    assert_close(updates["w"], 0.5 * alone["w"])


def test_scales_where_equinox_leaves_out_a_frozen_part(learned, problem):
    params, grads = problem
    params, grads = {**params, "b": None}, {**grads[0], "b": None}
    scaled = Scaled(learned, {"w": 0.5, "b": 3.0})
    updates, _ = scaled.update(grads, scaled.init(params), params)
    alone, _ = learned.update(grads, learned.init(params), params)
    assert_close(updates["w"], 0.5 * alone["w"])


class _Sloppy(AbstractOptimizer[None]):
    """Its annotations do not allow the default, as is common."""

    log_rate: Float[Array, ""]
    momentum: Float[Array, ""] = None

    def update_rules(self, params):
        return every_leaf(params, PROPORTIONAL)

    def init(self, params):
        return None

    def update(self, grads, state, params, *, context=StepContext()):
        return jax.tree.map(lambda g: -jnp.exp(self.log_rate) * g, grads), state


def test_an_optimizer_without_constants_is_not_taken_for_theta(problem):
    params, grads = problem
    transformation = as_optax(_Sloppy(jnp.zeros(())))
    updates, _ = transformation.update(grads[0], transformation.init(params), params)
    assert_close(updates, jax.tree.map(jnp.negative, grads[0]))
    with pytest.raises(TypeError, match="without `pipeline/step_rule/step_mult`: it seems to be the result of `theta`"):
        as_optax(theta(recipes.lolv2(key=jax.random.key(0))))


def test_multi_steps_is_an_optax_transformation(problem):
    params, grads = problem
    transformation = optax.MultiSteps(optax.sgd(0.5), 3)
    for optimizer in (OptaxOptimizer(transformation), OptaxOptimizer(optax.MultiSteps, optax.sgd(0.5), 3)):
        ours, _ = _run(optimizer.init, eqx.filter_jit(optimizer.update), params, grads)
        mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
        assert_close(ours, jax.tree.map(lambda p, g: p - 0.5 * g, params, mean), rtol=1e-4)


def test_as_optax_without_params_says_what_to_pass(problem):
    params, grads = problem
    transformation = as_optax(recipes.lolv2(hidden_size=2, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"needs the parameters: call `update\(grads, state, params\)`"):
        transformation.update(grads[0], transformation.init(params))


def _recording(seen):
    def update(updates, state, params=None, *, value=None, num_steps=None, **extra):
        seen.append((value, num_steps, extra))
        return updates, state

    return OptaxOptimizer(optax.GradientTransformationExtraArgs(lambda params: (), update))


def test_value_and_num_steps_pass_both_bridges_and_other_arguments_are_ignored(problem):
    params, grads = problem
    seen = []
    transformation = optax.chain(optax.identity(), as_optax(_recording(seen)))
    state = transformation.init(params)
    transformation.update(grads[0], state, params, value=jnp.float32(1.5), num_steps=10, grad=grads[0], unknown=3)
    transformation.update(grads[0], state, params)
    (value, num_steps, extra), nothing = seen
    assert (value.dtype, float(value)) == (jnp.float32, 1.5)
    assert (num_steps.dtype, int(num_steps)) == (jnp.int32, 10)
    assert extra == {}
    assert nothing == (None, None, {})


def test_an_optax_optimizer_equals_optax(problem):
    params, grads = problem
    transformation = optax.adamw(0.1, weight_decay=0.1)
    ours = OptaxOptimizer(transformation)
    assert_close(
        _run(ours.init, ours.update, params, grads), _run(transformation.init, transformation.update, params, grads)
    )


def test_an_optax_transformation_without_extra_arguments_takes_a_context(problem):
    params, grads = problem
    ours = OptaxOptimizer(optax.GradientTransformation(lambda params: (), lambda g, state, params: (g, state)))
    assert_close(ours.update(grads[0], (), params, context=StepContext(loss=1.0, num_steps=3))[0], grads[0])


def test_an_optax_optimizer_has_no_meta_parameters():
    assert jax.tree.leaves(OptaxOptimizer(optax.adam(0.1))) == []


@pytest.mark.parametrize(
    ("ours", "transformation"),
    [
        (Adam(0.1), optax.adam(0.1)),
        (Adam(0.1, b1=0.5, b2=0.8, eps=1e-2), optax.adam(0.1, b1=0.5, b2=0.8, eps=1e-2)),
        (SGD(0.1), optax.sgd(0.1)),
    ],
)
def test_baselines_equal_optax(ours, transformation, problem):
    params, grads = problem
    expected, _ = _run(transformation.init, transformation.update, params, grads)
    assert_close(_run(ours.init, ours.update, params, grads)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("baseline", [Adam, SGD])
def test_learning_rates_are_mapped_as_arrays_and_constants_as_floats(baseline, problem):
    params, grads = problem

    def final(learning_rate):
        optimizer = baseline(learning_rate)
        return _run(optimizer.init, optimizer.update, params, grads)[0]

    rates = [1e-3, 1e-2, 1e-1]
    mapped = jax.jit(jax.vmap(final))(jnp.array(rates))
    for i, rate in enumerate(rates):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), final(rate), rtol=1e-5)
    assert jax.tree.leaves(eqx.filter(baseline(0.1), eqx.is_array)) == []
    assert len(jax.tree.leaves(eqx.filter(baseline(jnp.float32(0.1)), eqx.is_array))) == 1


def test_gradients_flow_through_as_optax_built_inside_the_function(problem):
    params, grads = problem

    @eqx.filter_jit
    @eqx.filter_grad
    def meta_gradient(learned):
        transformation = as_optax(learned)
        updates: Any = transformation.update(grads[0], transformation.init(params), params)[0]
        return jnp.sum(updates["w"] * grads[1]["w"])

    leaves = jax.tree.leaves(meta_gradient(recipes.lolv2(hidden_size=2, decays=(0.9,), key=jax.random.key(0))))
    assert all(jnp.all(jnp.isfinite(x)) for x in leaves)
    assert sum(float(jnp.sum(jnp.abs(x))) for x in leaves) > 0


def test_the_update_has_the_sign_that_apply_updates_expects():
    grads = jnp.array([1.0, -2.0])
    for optimizer in (SGD(0.1), Adam(0.1)):
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_array_equal(jnp.sign(updates), -jnp.sign(grads))


PARAMS = {"w": jnp.ones((3, 5)), "b": jnp.ones(5), "scalar": jnp.ones(()), "empty": jnp.ones((0, 2))}
MEASURED = {
    "adam": (optax.adam(1e-3), SCALE_FREE),
    "lion": (optax.lion(1e-4), SCALE_FREE),
    "decayed, warmed up": (optax.adamw(optax.linear_schedule(0.0, 1e-3, 100), weight_decay=0.1), SCALE_FREE),
    "sgd": (optax.sgd(0.1), PROPORTIONAL),
    "nesterov": (optax.sgd(0.1, momentum=0.9, nesterov=True), PROPORTIONAL),
    "clipped": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), SCALE_FREE),
    "frozen": (
        optax.partition(
            {"a": optax.adam(1e-3), "z": optax.set_to_zero()},
            {**PARAMS, "w": "a", "b": "z", "scalar": "a", "empty": "z"},
        ),
        SCALE_FREE,
    ),
    "told the loss": (optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()), SCALE_FREE),
    "accumulated": (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), PROPORTIONAL),
    "injected": (optax.inject_hyperparams(optax.adam)(1e-3), SCALE_FREE),
    "decayed": (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), PROPORTIONAL),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", MEASURED)
def test_the_update_rule_of_a_transformation_is_measured(name):
    transformation, rule = MEASURED[name]
    assert OptaxOptimizer(transformation).update_rules(PARAMS) == every_leaf(PARAMS, rule) | {"empty": SCALE_FREE}


@pytest.mark.usefixtures("standard_promotion")
def test_each_array_is_measured_by_itself_also_with_traced_hyperparameters():
    mixed = optax.multi_transform(
        {"adam": optax.adam(1e-3), "sgd": optax.sgd(0.1)}, {"w": "adam", "b": "sgd", "scalar": "sgd", "empty": "sgd"}
    )
    rules = OptaxOptimizer(mixed).update_rules(PARAMS)
    assert (rules["w"], rules["b"], rules["scalar"]) == (SCALE_FREE, PROPORTIONAL, PROPORTIONAL)
    found = []

    @jax.jit
    @jax.vmap
    def traced(rate):
        found.extend(jax.tree.leaves(OptaxOptimizer(optax.adam, rate, b1=rate).update_rules(PARAMS)))
        found.extend(jax.tree.leaves(OptaxOptimizer(optax.sgd, rate).update_rules(PARAMS["w"])))
        with pytest.raises(ValueError, match="traced hyperparameters cannot be measured.*as fields"):
            OptaxOptimizer(optax.sgd(rate)).update_rules(PARAMS)
        return rate

    traced(jnp.array([0.1, 0.2]))
    assert found == [SCALE_FREE] * 4 + [PROPORTIONAL]


@pytest.mark.usefixtures("standard_promotion")
def test_rules_that_cannot_be_measured_have_to_be_declared():
    for transformation, words in {
        optax.contrib.muon(0.1): "`w` look orthogonalized.*update_rule=.*`ORTHOGONALIZED`",
        optax.set_to_zero(): "cannot be measured, because the first updates of all arrays are zero.*update_rule",
        # Proportional while gradients are small, independent of them once they are large.
        optax.adagrad(0.1): "`b` are neither proportional.*by 2 and",
        # SGD with momentum at first, Adam later; by the norm of the parameters.
        optax.radam(1e-3): "`b` are neither proportional.*update_rule",
        optax.lars(0.1): "`b` .*update_rule",
        optax.lamb(0.1): "`b` depend on the size of the parameters.*update_rule",
        optax.adafactor(0.1): "`b` .*update_rule",
        optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)): "`b` .*update_rule",
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)): "`b` are neither proportional.*by 2 and 169",
        optax.stateless(lambda g, p: jax.tree.map(lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)), g)): (
            "`b` are neither proportional.*by 1.41 and 1e.03.*update_rule"
        ),
    }.items():
        with pytest.raises(ValueError, match=words):
            OptaxOptimizer(transformation).update_rules({"b": PARAMS["b"], "w": PARAMS["w"]})
    muon = OptaxOptimizer(
        optax.contrib.muon,
        0.1,
        update_rule=RuleByRank(matrices=ORTHOGONALIZED, vectors=SCALE_FREE),
    )
    params = {"b": PARAMS["b"], "w": PARAMS["w"]}
    assert muon.update_rules(params) == {"b": SCALE_FREE, "w": ORTHOGONALIZED}
    updates, _ = muon.update(params, muon.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert OptaxOptimizer(optax.sgd(0.1), update_rule=PROPORTIONAL).update_rules(PARAMS["w"]) == PROPORTIONAL


def test_hyperparameters_are_fields_bound_by_name():
    optimizer = OptaxOptimizer(optax.adam, 0.1, b1=jnp.asarray(0.8))
    assert optimizer.hyperparameters["learning_rate"] == 0.1
    assert [float(x) for x in jax.tree.leaves(theta(optimizer))] == [np.float32(0.8)]
    assert OptaxOptimizer(optax.sgd, np.float32(0.5)) == OptaxOptimizer(optax.sgd, learning_rate=0.5)
    optimizer = OptaxOptimizer(lambda rate, **options: optax.adam(rate, **options), 0.1, b1=0.5)
    assert optimizer.hyperparameters == {"rate": 0.1, "b1": 0.5}
    for wrong, words in {
        lambda: OptaxOptimizer(optax.adam(0.1), 0.1): "ready-made `transformation` takes no arguments",
        lambda: OptaxOptimizer(optax.adam, rate=0.1): "`adam` cannot be called with these arguments|arguments",
        lambda: OptaxOptimizer(lambda *args: optax.sgd(*args), 0.1): "by position only",
        lambda: OptaxOptimizer("adam"): "`transformation` must be an optax|parameter 'transformation'",
    }.items():
        with pytest.raises(TypeError, match=words):
            wrong()
