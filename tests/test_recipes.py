import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal_tree, view_of

from lo_components import recipes
from lo_components.accumulators import TensorView

DECAYS = np.array([0.9, 0.99, 0.999])
TAUS = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


def _moments(grads, decays, power=1):
    total = np.zeros((len(decays), *grads[0].shape))
    for g in grads:
        b = np.asarray(decays).reshape(-1, *[1] * g.ndim)
        total = b * total + (1 - b) * g**power
    return total


def _guarded(x):
    return np.maximum(x, 1e-9) ** -0.5


def _normalized(x):
    axes = tuple(range(1, x.ndim))
    return x * (np.mean(np.square(x), axis=axes, keepdims=True) + 1e-5) ** -0.5


def _small_fc_lopt_features(param, grads):
    """The 39 features after `grads`, from the published formulas in NumPy; the last axis is the largest."""
    g, p = grads[-1], param
    m, v = _moments(grads, DECAYS), _moments(grads, [0.999], 2)
    q = _moments(grads, DECAYS, 2)
    if g.ndim < 2:
        row = col = q
        fac_g, fac_m = g * _guarded(q + 1e-9), m * (q + 1e-6) ** -0.5
    else:
        row, col = q.mean(2, keepdims=True), q.mean(1, keepdims=True)
        factors = _guarded(row / (row.mean(1, keepdims=True) + 1e-9)) * _guarded(col)
        fac_g, fac_m = g * factors, m * factors
    groups = [g[None], p[None], m, v, m * (v + 1e-6) ** -0.5, (v + 1e-6) ** -0.5, fac_g, row, col]
    groups += [(row + 1e-8) ** -0.5, (col + 1e-8) ** -0.5, fac_m]
    full = [_normalized(np.broadcast_to(x, (len(x), *g.shape))) for x in groups]
    time = np.tanh((len(grads) - 1) / TAUS - 1).reshape(-1, *[1] * g.ndim)
    return np.concatenate([*full, np.broadcast_to(time, (11, *g.shape))])


def _lolv2_features(param, grads):
    m = _moments(grads, np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999], np.float32))  # 1 - 0.9999 rounds to 1.0002e-4
    time = np.tanh((len(grads) - 1) / TAUS - 1).reshape(-1, *[1] * param.ndim)
    return np.concatenate(
        [*map(_normalized, [grads[-1][None], param[None], m]), np.broadcast_to(time, (11, *param.shape))]
    )


@eqx.filter_jit
def _our_features(pipeline, param, grads):
    states = tuple(a.init(param) for a in pipeline.accumulators)
    for grad in grads:
        states = tuple(a.update(view_of(grad), s) for a, s in zip(pipeline.accumulators, states, strict=True))
    stats = tuple(a.read(s) for a, s in zip(pipeline.accumulators, states, strict=True))
    view = TensorView(param, grads[-1], stats, jnp.asarray(len(grads) - 1, jnp.int32))
    channels = pipeline.features(view)
    return jnp.concatenate([jnp.broadcast_to(c.scaled(), (c.values.shape[0], *param.shape)) for c in channels])


REFERENCES = {"small_fc_lopt": _small_fc_lopt_features, "mulo": _small_fc_lopt_features, "lolv2": _lolv2_features}


# Each epsilon matters somewhere: in the first column, whose gradients are 0, or where gradients are small.
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-4])
@pytest.mark.parametrize("shape", [(4, 6), (5,)])
@pytest.mark.parametrize("name", ["small_fc_lopt", "lolv2"])
def test_features_are_the_published_ones_in_the_published_order(name, shape, scale, getkey):
    rng = np.random.default_rng(7)
    param = rng.normal(size=shape).astype(np.float32)
    grads = [(scale * rng.normal(size=shape)).astype(np.float32) for _ in range(3)]
    grads = [np.where(np.arange(shape[-1]) == 0, np.float32(0), g) for g in grads]
    optimizer = getattr(recipes, name)(key=getkey())
    ours = np.asarray(_our_features(optimizer.pipeline, jnp.asarray(param), list(map(jnp.asarray, grads))))
    expected = REFERENCES[name](param.astype(np.float64), [g.astype(np.float64) for g in grads])
    assert ours.shape == expected.shape
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=f"channel {i}")


def _count(optimizer):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(optimizer, eqx.is_array)))


def test_numbers_of_meta_parameters_are_the_published_ones(getkey):
    network = lambda n, h: n * h + h + h * h + h + h * 2 + 2  # noqa: E731
    assert _count(recipes.small_fc_lopt(key=getkey())) == network(39, 4) + 7
    assert _count(recipes.mulo(key=getkey())) == network(39, 32) + 7
    assert _count(recipes.lolv2(key=getkey())) == network(19, 32) == 1762


def test_aggregators_have_the_published_features_and_numbers_of_meta_parameters(getkey):
    for aggregator, features, decays in [
        (recipes.lopt_a(key=getkey()), 39, 7),
        (recipes.lagg_a(8, key=getkey()), 46, 7),
        (recipes.lagg_a(32, key=getkey()), 70, 7),
        (recipes.lopt(key=getkey()), 13, 0),
        (recipes.lagg(8, key=getkey()), 20, 0),
    ]:
        assert aggregator.pipeline.features.size == features
        assert _count(aggregator) == features * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2 + decays
        rule = aggregator.pipeline.step_rule
        assert (rule.step_mult, rule.exp_mult) == (1e-3, 1e-3)


def test_step_multipliers_are_the_published_ones(getkey):
    for recipe, step_mult in [(recipes.small_fc_lopt, 1e-3), (recipes.mulo, 1e-2), (recipes.lolv2, 1e-3)]:
        optimizer = recipe(key=getkey())
        assert (optimizer.pipeline.step_rule.step_mult, optimizer.pipeline.step_rule.exp_mult) == (step_mult, 1e-3)


def test_mulo_is_small_fc_lopt_with_a_larger_network_and_step():
    key = jax.random.key(3)
    same = recipes.small_fc_lopt(hidden_size=32, hidden_layers=2, step_mult=1e-2, key=key)
    assert eqx.tree_equal(recipes.mulo(key=key), same)


def test_hyperparameters_reach_their_parts(getkey):
    optimizer = recipes.small_fc_lopt(
        hidden_size=3,
        hidden_layers=1,
        step_mult=0.5,
        exp_mult=0.25,
        momentum_decays=(0.5, 0.6),
        rms_decay=0.7,
        factored_decays=(0.8, 0.85),
        key=getkey(),
    )
    pipeline = optimizer.pipeline
    assert [a.decays.initial for a in pipeline.accumulators] == [(0.5, 0.6), (0.7,), (0.8, 0.85)]
    assert [w.shape for w in pipeline.head.weights] == [(31, 3), (3, 2)]
    assert (pipeline.step_rule.step_mult, pipeline.step_rule.exp_mult) == (0.5, 0.25)
    optimizer = recipes.lolv2(hidden_size=3, hidden_layers=1, decays=(0.5,), key=getkey())
    assert [w.shape for w in optimizer.pipeline.head.weights] == [(14, 3), (3, 2)]


def test_unpaired_decays_are_refused(getkey):
    with pytest.raises(
        ValueError, match="`factored_decays` must have as many entries as `momentum_decays`, got 1 and 3"
    ):
        recipes.small_fc_lopt(factored_decays=(0.9,), key=getkey())


@pytest.mark.parametrize("recipe", [recipes.small_fc_lopt, recipes.lolv2])
def test_the_initial_step_is_small_for_any_gradient_scale(recipe, getkey):
    optimizer = recipe(hidden_size=4, key=getkey())
    params = normal_tree({"w": (3, 4)}, getkey())
    update = eqx.filter_jit(lambda g: optimizer.update(g, optimizer.init(params), params)[0]["w"])
    for scale in (1e-6, 1.0, 1e6):
        assert jnp.max(jnp.abs(update({"w": scale * params["w"]}))) < 0.05
