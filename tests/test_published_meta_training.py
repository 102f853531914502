"""Published optimizers are meta-trained by every estimator."""

import equinox as eqx
import jax
import numpy as np
import pytest
from meta_helpers import quadratic_unroll

from lo_components import estimators, recipes
from lo_components.optimizers import Partitioned

KEY = jax.random.key(0)
SMALL = {"hidden_size": 2, "key": KEY}
RECIPES = {
    "velo": recipes.velo(lstm_size=3, num_networks=2, **SMALL),
    "celo": recipes.celo(lstm_size=3, **SMALL),
    "celo_adam": recipes.celo_adam(lstm_size=3, key=KEY),
    "sinv6": recipes.sinv6(lstm_size=3, key=KEY),
    "celo2": Partitioned(recipes.celo2_direction(**SMALL), recipes.celo2_base(1e-2, **SMALL)),
    "rnn_mlp": recipes.rnn_mlp(lstm_size=3, **SMALL),
    "star": recipes.star(**SMALL),
    "residual_muon": recipes.residual_muon(1e-2, **SMALL),
    "nn_adam": recipes.nn_adam(size=3, key=KEY),
    "l2l_lstm": recipes.l2l_lstm(sizes=(3, 2), key=KEY),
}
ESTIMATORS = {
    "PES": lambda: estimators.PES(quadratic_unroll(steps=8, window=4), num_pairs=2),
    "ESSingle": lambda: estimators.ESSingle(quadratic_unroll(steps=8, window=4), num_pairs=2),
    "TruncatedES": lambda: estimators.TruncatedES(quadratic_unroll(steps=8, window=4), num_pairs=2),
    "FullES": lambda: estimators.FullES(quadratic_unroll(steps=8, window=8), num_pairs=2),
    "TruncatedBackprop": lambda: estimators.TruncatedBackprop(quadratic_unroll(steps=8, window=4), num_particles=2),
}


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_meta_gradient_is_finite_and_not_zero(name, estimator):
    learner, estimator = RECIPES[name], ESTIMATORS[estimator]()
    state = eqx.filter_jit(lambda e, o: e.init(o, key=KEY))(estimator, learner)
    estimate, _ = eqx.filter_jit(lambda e, o, s: e.estimate(o, s, key=KEY))(estimator, learner, state)
    leaves = [np.asarray(x) for x in jax.tree.leaves(estimate.grad)]
    assert all(np.all(np.isfinite(x)) for x in leaves)
    assert any(np.any(x != 0) for x in leaves)
