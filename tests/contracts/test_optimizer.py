"""What every optimizer must do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import SGD, Adam, assert_close, normal_tree

from lo_components import accumulators as acc
from lo_components import features as ft
from lo_components import optimizers, recipes
from lo_components.controllers import AbstractController, MomentSummary
from lo_components.heads import IdentityHead
from lo_components.optimizers import (
    Clipped,
    ClippedAdaptively,
    ClippedByValue,
    ControlledOptimizer,
    Decayed,
    Guarded,
    NNAdam,
    OptaxOptimizer,
    Partitioned,
    Scaled,
    Scheduled,
    StepContext,
    as_optax,
)
from lo_components.pipeline import Pipeline
from lo_components.schedules import OptaxSchedule
from lo_components.steps import Direction, TimesLastControl


class _Sums(AbstractController):
    """One control for each tensor, the sum of its summary."""

    in_size: int = eqx.field(default=8, init=False, static=True)
    out_size: int = eqx.field(default=1, init=False, static=True)

    def init(self, num_tensors):
        return jnp.zeros((num_tensors, 1))

    def __call__(self, summaries, state, progress):
        state = state + jnp.sum(summaries, axis=1, keepdims=True)
        return state, state


SHAPES = {"w": (2, 3), "b": (), "empty": (0, 2)}
SCALES = {"w": 0.5, "b": 2.0, "empty": 1.0}
_LEARNED = recipes.lolv2(hidden_size=2, decays=(0.5, 0.9), key=jax.random.key(0))
_CONTROLLED = Pipeline(
    (acc.Momentum((0.9,)), acc.SquaredMomentum((0.9,))),
    ft.Momenta(1),
    IdentityHead(1),
    Direction(0.1),
    (TimesLastControl(),),
)
TABLE = [
    _LEARNED,
    Adam(0.1),
    SGD(0.1),
    OptaxOptimizer(optax.adamw(0.1)),
    Scaled(_LEARNED, SCALES),
    Clipped(_LEARNED, 0.5),
    Clipped(Scaled(Adam(0.1), SCALES), 0.5),
    Decayed(Scaled(_LEARNED, SCALES), 0.01),
    ClippedByValue(_LEARNED, 0.5),
    Scheduled(_LEARNED, OptaxSchedule(optax.cosine_decay_schedule, 1.0, decay_steps=10)),
    Partitioned(_LEARNED, Adam(0.1)),
    NNAdam(3, learning_rate=0.1, key=jax.random.key(0)),
    ControlledOptimizer(_Sums(), MomentSummary(1), _CONTROLLED),
    ClippedAdaptively(_LEARNED),
    Guarded(_LEARNED, Adam(0.1)),
    recipes.rnn_mlp(lstm_size=2, hidden_size=2, key=jax.random.key(0)).optimizer,
]
every_optimizer = pytest.mark.parametrize("optimizer", TABLE, ids=lambda o: type(o).__name__)


def _loss_of(params):
    return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params))


# Some optimizers cannot do without.
CONTEXT = StepContext(loss=1.0, num_steps=10, loss_fn=_loss_of)


def call(optimizer, grads, state, params, context=CONTEXT):
    return optimizer.update(grads, state, params, context=context)


update = eqx.filter_jit(call)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def params():
    return normal_tree(SHAPES, jax.random.key(1))


@pytest.fixture
def grads():
    return normal_tree(SHAPES, jax.random.key(2))


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_table_holds_every_optimizer(concrete_classes):
    assert {type(o) for o in TABLE} == concrete_classes(optimizers, optimizers.AbstractOptimizer)


@every_optimizer
def test_updates_are_like_params_and_states_keep_their_structure(optimizer, params, grads):
    state = optimizer.init(params)
    updates, new = update(optimizer, grads, state, params)
    assert _describe(updates) == _describe(params)
    assert _describe(new) == _describe(state)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, new)))
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize(("param_dtype", "grad_dtype"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)])
@every_optimizer
def test_updates_have_the_dtype_of_params_whatever_that_of_the_gradients(
    optimizer, param_dtype, grad_dtype, params, grads
):
    params = jax.tree.map(lambda x: x.astype(param_dtype), params)
    grads = jax.tree.map(lambda x: x.astype(grad_dtype), grads)
    state = optimizer.init(params)
    updates, _ = jax.eval_shape(lambda *args: call(optimizer, *args), grads, state, params)
    assert _describe(updates) == _describe(params)


@every_optimizer
def test_jit_equals_eager(optimizer, params, grads):
    state = optimizer.init(params)
    assert_close(call(optimizer, grads, state, params), update(optimizer, grads, state, params), rtol=1e-5)


@every_optimizer
def test_training_is_a_scan(optimizer, params, grads):
    def step(carry, _):
        params, state = carry
        updates, state = call(optimizer, grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=3))(params)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(scanned, params, rtol=1e-5)


@every_optimizer
def test_mapping_over_runs_equals_separate_runs(optimizer, params, grads):
    run = lambda p: call(optimizer, grads, optimizer.init(p), p)[0]  # noqa: E731
    other = jax.tree.map(lambda x: 2.0 * x, params)
    mapped = jax.jit(jax.vmap(run))(jax.tree.map(lambda a, b: jnp.stack([a, b]), params, other))
    for i, p in enumerate((params, other)):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), jax.jit(run)(p), rtol=1e-5)


@every_optimizer
def test_what_a_context_knows_may_be_arrays(optimizer, params, grads):
    state = optimizer.init(params)
    context = StepContext(jnp.float32(1.0), jnp.int32(10), _loss_of)
    assert_close(update(optimizer, grads, state, params, context), update(optimizer, grads, state, params))


@pytest.mark.parametrize("optimizer", TABLE[:8], ids=lambda o: type(o).__name__)
def test_a_context_may_be_left_out_if_it_is_not_needed(optimizer, params, grads):
    state = optimizer.init(params)
    alone = eqx.filter_jit(lambda o: o.update(grads, state, params))(optimizer)
    assert_close(alone, update(optimizer, grads, state, params))


@every_optimizer
def test_the_second_call_does_not_trace_again(optimizer, params, grads):
    traces = 0

    @eqx.filter_jit
    def step(optimizer, grads, state, params):
        nonlocal traces
        traces += 1
        return call(optimizer, grads, state, params)

    state = optimizer.init(params)
    for _ in range(2):
        updates, state = step(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
    assert traces == 1


@every_optimizer
def test_as_optax_gives_the_same_updates(optimizer, params, grads):
    transformation = as_optax(optimizer)
    state = transformation.init(params)
    updates, _ = jax.jit(lambda *args: transformation.update(*args, value=1.0, num_steps=10, value_fn=_loss_of))(
        grads, state, params
    )
    assert_close(updates, update(optimizer, grads, optimizer.init(params), params)[0], rtol=1e-5)


@every_optimizer
def test_wrong_gradients_are_refused(optimizer, params, grads):
    state = optimizer.init(params)
    wrong_dtype = {**grads, "b": jnp.asarray(1)}
    for wrong, message in (
        ({"w": grads["w"]}, "`grads` must have the structure of `params`"),
        (
            {**grads, "w": grads["w"].T},
            r"`grads` must have the shapes of `params`: at `w` got \(3, 2\), expected \(2, 3\)",
        ),
        (wrong_dtype, "grads"),
    ):
        with pytest.raises(Exception, match=message):
            call(optimizer, wrong, state, params)
