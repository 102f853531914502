"""What every feature must do."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components import accumulators as acc
from lo_components import features as ft
from lo_components.accumulators import TensorView

TABLE = [
    ft.Gradient(),
    ft.Parameter(),
    ft.Momenta(2),
    ft.Squares(2),
    ft.NormalizedMomenta(2),
    ft.FactoredGradient(2),
    ft.FactoredMomenta(2),
    ft.RowSquares(2),
    ft.ColumnSquares(2),
    ft.InverseRoot(ft.RowSquares(2)),
    ft.RMSNormalized(ft.Concat(ft.FactoredGradient(2), ft.ColumnSquares(2))),
    ft.Concat(ft.Momenta(2), ft.RMSNormalized(ft.RowSquares(2)), ft.TimeEmbedding()),
    ft.TimeEmbedding((1.0, 10.0)),
    ft.WorkerDeltas(2),
    ft.PooledWorkerDeltas(3, key=jax.random.key(0)),
    ft.ClippedGradient(0.1),
    ft.LogAndSign(),
    ft.LogParameter(),
    ft.Controls(2),
    ft.SineEmbedding((1.0, 10.0)),
    ft.Recurrent(2),
    ft.NormalizedGradient(),
    ft.RMSNormalizedMatrices(ft.Concat(ft.Gradient(), ft.Momenta(2))),
    ft.MatricesOnly(ft.RowSquares(2)),
    ft.Channel(ft.Momenta(2), -1),
    ft.ChannelMean(ft.Momenta(2)),
    ft.TensorMean(ft.Concat(ft.Gradient(), ft.Momenta(2))),
]
# Their accumulator has one decay rate.
_ONE_SQUARE = (ft.NormalizedMomenta, ft.NormalizedGradient)
every_feature = pytest.mark.parametrize("feature", TABLE, ids=lambda f: type(f).__name__)

_ACCUMULATORS = (
    acc.Momentum((0.5, 0.9)),
    acc.FactoredSquares((0.5, 0.9)),
    acc.RecurrentNetwork(ft.Gradient(), (2,), key=jax.random.key(0)),
)


def _view(feature, grad, keep=None):
    """A view with the statistics that the feature requires, and no others."""
    squares = acc.SquaredMomentum((0.5,) if isinstance(feature, _ONE_SQUARE) else (0.5, 0.9))
    needed = [a for a in (*_ACCUMULATORS, squares) if a.produces in feature.requires and a.produces is not keep]
    stats = tuple(a.read(a.update(view_of(grad), a.init(grad))) for a in needed)
    deltas = jnp.stack([grad, -2.0 * grad])
    controls = jnp.array([0.5, -2.0])
    return TensorView(grad + 1.0, grad, stats, jnp.asarray(3, jnp.int32), deltas=deltas, controls=controls)


def test_the_table_holds_every_feature(concrete_classes):
    assert {type(f) for f in TABLE} == concrete_classes(ft, ft.AbstractFeature)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (0,)])
@every_feature
def test_channels_are_as_many_as_declared_and_broadcast_against_the_tensor(feature, shape, getkey):
    channels = eqx.filter_jit(feature)(_view(feature, jax.random.normal(getkey(), shape)))
    assert isinstance(channels, tuple)
    assert sum(c.values.shape[0] for c in channels) == feature.size
    for c in channels:
        assert c.values.dtype == jnp.float32
        assert c.values.ndim == 1 + len(shape)
        assert jnp.broadcast_shapes(c.values.shape[1:], shape) == shape
        assert c.mean_square is None or c.mean_square.shape == c.values.shape[:1]


@every_feature
def test_exactly_the_required_statistics_are_asked_for(feature):
    feature(_view(feature, jnp.ones((6, 3))))
    for kind in feature.requires:
        with pytest.raises(ValueError, match=kind.__name__):
            feature(_view(feature, jnp.ones((6, 3)), keep=kind))


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
@every_feature
def test_values_are_pointwise_over_the_tensor(feature, shape, getkey):
    """Channels of some rows are some rows of the channels, so that a tensor can be evaluated block by block.

    Parts of the mean squares add up.
    """
    if not feature.pointwise:
        pytest.skip("evaluated on the whole tensor only")
    view = _view(feature, jax.random.normal(getkey(), shape))

    def part(rows):
        return view.with_tensors([x[:, rows] if x.shape[1] == 6 else x for x in view.tensors()])

    parts = [feature(part(rows)) for rows in (slice(0, 2), slice(2, 6))]
    for a, b, c in zip(feature(view), *parts, strict=True):
        rows = a.values[:, 2:] if a.values.shape[1] == 6 else a.values
        np.testing.assert_allclose(c.values, rows, rtol=1e-6)
        assert (a.mean_square is None, a.eps) == (c.mean_square is None, c.eps)
        if a.mean_square is not None:
            np.testing.assert_allclose(b.mean_square + c.mean_square, a.mean_square, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
@every_feature
def test_what_does_not_count_does_not_change_the_mean_squares(feature, shape, getkey):
    grad = jax.random.normal(getkey(), shape)
    view = _view(feature, grad)
    padding = [jnp.full_like(x, jnp.nan) if x.shape[1] == 6 else x for x in view.tensors()]
    longer = [
        jnp.concatenate([x, y], 1) if x.shape[1] == 6 else x for x, y in zip(view.tensors(), padding, strict=True)
    ]
    counted = (jnp.arange(12) < 6).reshape(-1, *[1] * (len(shape) - 1))
    padded = dataclasses.replace(view.with_tensors(longer), size=jnp.asarray(grad.size), counted=counted)
    for a, b in zip(feature(view), feature(padded), strict=True):
        assert (a.mean_square is None) == (b.mean_square is None)
        if a.mean_square is not None:
            np.testing.assert_allclose(b.mean_square, a.mean_square, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
@every_feature
def test_zero_gradients_give_finite_channels(feature, shape):
    for c in feature(_view(feature, jnp.zeros(shape))):
        assert jnp.all(jnp.isfinite(c.scaled()))


@every_feature
def test_features_hold_no_meta_parameters_but_an_embeddings(feature):
    """An array among a feature's constants would be meta-learned."""
    expected = [(3,), (3,)] if isinstance(feature, ft.PooledWorkerDeltas) else []
    assert [x.shape for x in jax.tree.leaves(eqx.filter(feature, eqx.is_array))] == expected
