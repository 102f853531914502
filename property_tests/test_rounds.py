"""A learned aggregator under muP: after rounds of local SGD, no layer's change depends on the width."""

import jax
import optax
import pytest
from networks import images
from test_coordinates import assert_no_layer_depends_on_the_width

from lo_components import recipes, tasks
from lo_components.meta import coordinate_check
from lo_components.parametrization import SP, MuP
from lo_components.unroll import LocalRound

WORKERS, ROUNDS, WIDTHS, SEEDS = 3, 3, (16, 64, 256), 12


def mlp(width, parametrization):
    return tasks.mlp_classification(images(), width=width, depth=2, parametrization=parametrization, batch_size=16)


def check(parametrization):
    """A coordinate check over rounds, for an LAgg-A with random meta-parameters and large steps."""
    aggregator = recipes.lagg_a(
        WORKERS, hidden_size=4, step_mult=0.01, momentum_decays=(0.9,), factored_decays=(0.9,), key=jax.random.key(3)
    )
    found = coordinate_check(
        aggregator,
        lambda width: mlp(width, parametrization),
        widths=WIDTHS,
        num_steps=ROUNDS,
        num_seeds=SEEDS,
        inner_step=LocalRound(WORKERS, 4, optax.sgd(0.1)),
        key=jax.random.key(4),
    )
    print(found.table())
    return found


@pytest.mark.slow
def test_under_mup_rounds_of_a_random_lagg_a_move_every_layer_as_much_at_every_width():
    found = check(MuP())
    # In the first round the readout is zero, so hidden layers get no gradient.
    for step in range(1, ROUNDS):
        assert_no_layer_depends_on_the_width(found, step)


@pytest.mark.slow
def test_under_sp_they_move_wide_layers_more():
    assert check(SP()).largest() > 0.5
