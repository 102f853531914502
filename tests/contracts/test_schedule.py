"""What every schedule must do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import assert_close

from lo_components import schedules
from lo_components.schedules import Progress

_LEARNED = schedules.LearnedSchedule(4, key=jax.random.key(0))
TABLE = [
    schedules.OptaxSchedule(optax.cosine_decay_schedule, 1.0, decay_steps=100),
    _LEARNED,
    schedules.Exponential(_LEARNED, 0.1),
    schedules.Limited(_LEARNED, 1e-5, 1e3),
    schedules.WarmUpAndDecay(0.5, 0.1, reference_steps=50),
]
every_schedule = pytest.mark.parametrize("schedule", TABLE, ids=lambda s: type(s).__name__)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def _progress(step, loss=1.0, num_steps=100):
    return Progress(jnp.asarray(step, jnp.int32), jnp.asarray(loss, jnp.float32), jnp.asarray(num_steps, jnp.int32))


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_table_holds_every_schedule(concrete_classes):
    assert {type(s) for s in TABLE} == concrete_classes(schedules, schedules.AbstractSchedule)


@every_schedule
def test_factors_are_scalars_and_states_keep_their_structure_in_a_scan(schedule):
    state = schedule.init()

    def step(state, t):
        factor, state = schedule(state, _progress(t))
        return state, factor

    last, factors = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(4)))(state)
    assert (factors.shape, factors.dtype) == ((4,), jnp.float32)
    assert (jax.tree.structure(last), _describe(last)) == (jax.tree.structure(state), _describe(state))


@every_schedule
def test_jit_equals_eager(schedule):
    _, state = schedule(schedule.init(), _progress(0))
    assert_close(eqx.filter_jit(schedule)(state, _progress(1, 2.0)), schedule(state, _progress(1, 2.0)), rtol=1e-4)


@pytest.mark.parametrize("losses", [(0.0, 0.0, 0.0), (1e30, -1e30, 1.0), (1e-30, 1e30, 1e30), (-1.0, -2.0, -3.0)])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 10**6])
@every_schedule
def test_extreme_losses_and_lengths_give_finite_factors(schedule, losses, num_steps):
    state = schedule.init()
    for t, loss in enumerate(losses):
        factor, state = eqx.filter_jit(schedule)(state, _progress(t, loss, num_steps))
        assert jnp.all(jnp.isfinite(factor))


@every_schedule
def test_meta_parameters_have_finite_derivatives(schedule):
    theta, static = eqx.partition(schedule, eqx.is_inexact_array)

    def total(theta):
        made, factor = eqx.combine(theta, static), 0.0
        state = made.init()
        for t in range(3):
            y, state = made(state, _progress(t, 1.0 / (t + 1)))
            factor += y
        return factor

    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(jax.grad(total)(theta)))


@pytest.mark.parametrize(("name", "known"), [("loss", {"num_steps": 10}), ("num_steps", {"loss": 1.0})])
def test_what_is_missing_is_named(name, known):
    progress = Progress(jnp.asarray(0, jnp.int32), **{k: jnp.asarray(x) for k, x in known.items()})
    with pytest.raises(ValueError, match=f"needs `{name}`, which is not known: pass `StepContext"):
        _LEARNED(_LEARNED.init(), progress)
