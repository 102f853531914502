"""STAR: step rules that are made of others, and the options of the original that no trajectory was recorded for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, load_golden, normal_tree

from lo_components import features as ft
from lo_components import interop, recipes
from lo_components.accumulators import FirstMoment, SecondMoment, TensorView
from lo_components.pipeline import Pipeline
from lo_components.steps import Direction, DirectionMagnitude, Fixed, Magnitude, Pooled, Sum, Times

G = np.array([[1.0, -2.0, 4.0], [0.5, 3.0, -1.0]], np.float32)
P = np.array([[2.0, 1.0, -1.0], [0.0, 0.5, 3.0]], np.float32)
M = jnp.asarray(np.stack([0.5 * G, 0.1 * G + 1.0]))
V = jnp.asarray(G[None] ** 2 + 0.5)
O = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(4, 2, 3)  # noqa: E741
VIEW = TensorView(jnp.asarray(P), jnp.asarray(G), (FirstMoment(M), SecondMoment(V)), jnp.asarray(0, jnp.int32))


def _values(feature):
    return np.concatenate([np.broadcast_to(c.scaled(), (c.values.shape[0], *G.shape)) for c in feature(VIEW)])


def test_channels_and_means_agree_with_numpy():
    both = ft.Concat(ft.Gradient(), ft.Momenta(2))
    np.testing.assert_allclose(_values(ft.Channel(both, -1)), M[1:], rtol=1e-6)
    np.testing.assert_allclose(_values(ft.Channel(both, 1)), M[:1], rtol=1e-6)
    np.testing.assert_allclose(_values(ft.ChannelMean(both))[0], (G + M[0] + M[1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(_values(ft.TensorMean(both))[:, 0, 0], [G.mean(), *M.mean((1, 2))], rtol=1e-6)


def test_rules_made_of_others_agree_with_numpy():
    rule = Sum(
        Times(Pooled(DirectionMagnitude(0.1, 2.0), (1,)), ft.InverseRoot(ft.Squares(), eps=1e-6)),
        Times(Magnitude(0.3, 0.5), ft.Momenta(1)),
        Fixed(0.01),
        Direction(0.2),
    )
    view = VIEW.with_tensors([VIEW.param[None], VIEW.grad[None], M[:1], V])
    expected = -0.1 * O[0] * np.exp(2.0 * O[1].mean()) / np.sqrt(V[0] + 1e-6)
    expected += -0.3 * np.exp(0.5 * O[2]) * M[0] - 0.01 - 0.2 * O[3]
    assert rule.in_size == 4
    np.testing.assert_allclose(rule(jnp.asarray(O), view), expected, rtol=1e-5)


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="`feature` must have one channel, got 3"):
        Times(Direction(), ft.Momenta(3))
    with pytest.raises(ValueError, match="`feature` must not be normalized"):
        Times(Direction(), ft.RMSNormalized(ft.Gradient()))(jnp.asarray(O[:1]), VIEW)
    with pytest.raises(ValueError, match=r"`outputs` must lie between 0 and 1, got \(2,\)"):
        Pooled(DirectionMagnitude(), (2,))
    star = recipes.star(key=jax.random.key(0)).pipeline
    with pytest.raises(ValueError, match="the step rule require FirstMoment, SecondMoment"):
        Pipeline((), ft.Gradient(), star.head, star.step_rule)


@pytest.mark.parametrize("pooled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_large_tensors_are_evaluated_as_small_ones(pooled, monkeypatch, getkey):
    rule = Sum(
        Times(DirectionMagnitude(0.1, 0.1), ft.InverseRoot(ft.Squares(), eps=1e-6)),
        Times(Pooled(Magnitude(0.1, 0.1), (0,) if pooled else ()), ft.TensorMean(ft.Gradient())),
    )
    optimizer = recipes.star(step_rule=rule, key=getkey())
    params, grads = (normal_tree({"w": (64, 32), "b": ()}, getkey()) for _ in range(2))
    expected = optimizer.update(grads, optimizer.init(params), params)
    monkeypatch.setattr("lo_components._tree.BLOCKED_FROM", 1024)
    monkeypatch.setattr("lo_components.pipeline._blocks.SIZE_ON_CPUS", 256)
    assert_close(optimizer.update(grads, optimizer.init(params), params), expected, rtol=1e-4, atol=1e-6)


def _update(**options):
    """The update of one step with zero weights in the last layer, and biases 0, 1, 2, 3."""
    run = load_golden("star_options")
    theta = {**run["theta"], "nn/~/w1": np.zeros((6, 4), np.float32), "nn/~/b1": np.arange(4, dtype=np.float32)}
    config = {"hidden_size": 6, "hidden_layers": 1, "exp_mult": (0.1, 0.2, 0.3), **options}
    optimizer = interop.from_reference("star", theta, config)
    state = optimizer.init(P)
    for grad in (G, G):
        update, state = optimizer.update(grad, state, P)
    m, v = state.accumulators[0].m, state.accumulators[1].v
    return np.asarray(update), np.asarray(m), np.asarray(v)


_DIRECTIONS = {
    "SGD": lambda m, v: G,
    "SGDM": lambda m, v: m[-1],
    "AggMo": lambda m, v: m.mean(0),
    "Adam": lambda m, v: m[-1] / np.sqrt(v[0] + 1e-6),
    "AdamAggMo": lambda m, v: (m / np.sqrt(v + 1e-6)).mean(0),
}


@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("estimator", _DIRECTIONS)
def test_every_nominal_term_agrees_with_numpy(estimator, controlled, aggregate):
    update, m, v = _update(
        nominal_stepsize=0.5,
        nominal_grad_estimator=estimator,
        nominal_controller=controlled,
        aggregate_nom_magnitude=aggregate,
    )
    expected = -0.5 * np.exp(0.2 * (2.0 if controlled else 1.0)) * _DIRECTIONS[estimator](m, v)
    np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.parametrize("controlled", [False, True])
def test_weight_decay_is_a_share_of_the_parameter(controlled):
    update, *_ = _update(weight_decay=0.25, regularization_controller=controlled)
    np.testing.assert_allclose(update, -0.25 * np.exp(0.9 if controlled else 0.0) * P, rtol=1e-5)


def test_an_unknown_nominal_term_and_several_squares_are_refused():
    with pytest.raises(ValueError, match="`nominal_grad_estimator` must be one of SGD, .* got 'Lion'"):
        _update(nominal_grad_estimator="Lion")
    with pytest.raises(ValueError, match="`initial_rms_decays` must have one entry"):
        _update(initial_rms_decays=(0.9, 0.99))
