"""A learned aggregator under muP: after rounds of local SGD no layer's change depends on the width."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images
from test_coordinates import assert_no_layer_depends_on_the_width

from lo_components import recipes, tasks
from lo_components.optimizers import SGD, Scaled
from lo_components.parametrization import SP, MuP
from lo_components.tasks import CoordinateCheck
from lo_components.tasks._named_values import named_values
from lo_components.unroll import LocalRound

WORKERS, ROUNDS, WIDTHS, SEEDS = 3, 3, (16, 64, 256), 12


def mlp(width, parametrization):
    return tasks.mlp_classification(images(), width=width, depth=2, parametrization=parametrization, batch_size=16)


@eqx.filter_jit
def changes(task, inner, aggregator, key):
    init_key, probe_key, key = jax.random.split(key, 3)
    params = task.init(key=init_key)
    probe = task.batch(key=probe_key)
    state, values = inner.init(aggregator, params), []
    for i in range(ROUNDS + 1):
        values.append(named_values(lambda p: task.loss(p, probe, key=probe_key), params))
        _, params, state = inner.step(
            aggregator, task, params, state, jnp.asarray(10, jnp.int32), key=jax.random.fold_in(key, i)
        )
    return {
        name: jnp.stack([jnp.sqrt(jnp.mean(jnp.square(after[name] - values[0][name]))) for after in values[1:]])
        for name in values[0]
    }


def check(parametrization, local_rates):
    """A round's coordinate check for a LAgg-A with random meta-parameters, of steps large enough to be seen."""
    aggregator = recipes.lagg_a(
        WORKERS, hidden_size=4, step_mult=0.01, momentum_decays=(0.9,), factored_decays=(0.9,), key=jax.random.key(3)
    )
    found = []
    for width in WIDTHS:
        task, local = mlp(width, parametrization), SGD(0.1)
        inner = LocalRound(WORKERS, 4, local if local_rates is None else Scaled(local, local_rates(width)))
        keys = jax.random.split(jax.random.key(4), SEEDS)
        found.append([changes(task, inner, aggregator, key) for key in keys])
    layers = tuple(found[0][0])
    stacked = np.array([[[seed[name] for name in layers] for seed in seeds] for seeds in found], np.float64)
    return CoordinateCheck(WIDTHS, layers, np.moveaxis(stacked, 2, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_under_mup_rounds_of_a_random_lagg_a_move_every_layer_as_much_at_every_width():
    found = check(MuP(), lambda width: mlp(width, MuP(update_rule="sgd")).update_scales)
    print(found.table())
    # In the first round a readout of zero passes nothing on.
    for step in range(1, ROUNDS):
        assert_no_layer_depends_on_the_width(found, step)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_under_sp_they_move_wide_layers_more():
    found = check(SP(), None)
    print(found.table())
    assert found.largest() > 0.5
