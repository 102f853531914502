import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components.features import Channels
from lo_components.heads import HeadByRank, LinearHead, MLPHead, ResidualHead

SHAPE = (3, 5)
VIEW = view_of(jnp.zeros(SHAPE))


def _channels(key, with_full=True):
    """All kinds of channels of a 3 x 5 tensor, 8 in all: full size, row, column, constant; scaled and not."""
    keys = iter(jax.random.split(key, 8))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    shapes = [(2, 3, 5), (1, 3, 5)] if with_full else [(2, 3, 1), (1, 1, 5)]
    return (
        Channels(draw(*shapes[0]), jnp.array([4.0, 0.1]), eps=1e-5),
        Channels(draw(1, 3, 1), jnp.array([0.5]), eps=1e-5),
        Channels(draw(*shapes[1])),
        Channels(draw(2, 1, 5), jnp.array([2.0, 3.0]), eps=0.25),
        Channels(draw(2, 1, 1)),
    )


def _tiled(features):
    """Every channel at full size with its scale applied, `[n, c]` in float64."""
    columns = []
    for c in features:
        values = np.asarray(c.values, np.float64)
        scale = 1.0 if c.mean_square is None else (np.asarray(c.mean_square, np.float64) + c.eps) ** -0.5
        values = values * np.broadcast_to(scale, values.shape[:1]).reshape(-1, 1, 1)
        columns.append(np.broadcast_to(values, (values.shape[0], *SHAPE)).reshape(values.shape[0], -1))
    return np.concatenate(columns).T


def _dense(head, features):
    x = _tiled(features)
    for i, (w, b) in enumerate(zip(head.weights, head.biases, strict=True)):
        x = (np.maximum(x, 0) if i else x) @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    return x.T.reshape(-1, *SHAPE)


def _mlp(getkey, hidden_layers):
    head = MLPHead(8, 3, hidden_size=6, hidden_layers=hidden_layers, key=getkey())
    biases = tuple(jax.random.normal(getkey(), b.shape) for b in head.biases)
    return eqx.tree_at(lambda h: h.biases, head, biases)


@pytest.mark.parametrize("with_full", [True, False])
@pytest.mark.parametrize("hidden_layers", [1, 2])
@pytest.mark.parametrize(
    "evaluate",
    [lambda head, x: head(x, VIEW), MLPHead._unrolled, MLPHead._matmul],
    ids=["chosen", "unrolled", "matmul"],
)
def test_mlp_equals_a_dense_network_on_tiled_channels(evaluate, hidden_layers, with_full, getkey):
    head, features = _mlp(getkey, hidden_layers), _channels(getkey(), with_full)
    out = jax.jit(evaluate)(head, features)
    np.testing.assert_allclose(out, _dense(head, features), rtol=1e-5, atol=1e-5)


def test_mlp_of_channels_that_are_all_broadcast_stays_small(getkey):
    head = _mlp(getkey, 1)
    features = (Channels(jnp.ones((5, 3, 1))), Channels(jnp.ones((3, 1, 1))))
    assert head(features, VIEW).shape == (3, 3, 1)
    np.testing.assert_allclose(jnp.broadcast_to(head(features, VIEW), (3, *SHAPE)), _dense(head, features), rtol=1e-5)


def test_linear_head_is_a_weighted_sum_of_scaled_channels(getkey):
    head = LinearHead(8, 2, key=getkey())
    head = eqx.tree_at(lambda h: h.bias, head, jnp.array([0.5, -2.0]))
    features = _channels(getkey())
    expected = (_tiled(features) @ np.asarray(head.weight, np.float64) + np.array([0.5, -2.0])).T.reshape(2, *SHAPE)
    np.testing.assert_allclose(jax.jit(LinearHead.__call__)(head, features, VIEW), expected, rtol=1e-5, atol=1e-6)


def _path_taken(size, hidden_size, hidden_layers, getkey, /, **block):
    """Whether an MLP on 39 channels, 16 of them of full size, is written out element by element."""
    head = MLPHead(39, 2, hidden_size=hidden_size, hidden_layers=hidden_layers, key=getkey())
    features = (Channels(jnp.ones((16, size))), Channels(jnp.ones((23, 1))))
    return "dot_general" not in str(jax.make_jaxpr(head)(features, view_of(jnp.zeros(size), **block)))


@pytest.mark.parametrize(
    ("size", "hidden_size", "hidden_layers", "written_out"),
    [
        (100, 4, 2, True),
        (2**16, 4, 2, True),
        (100, 32, 1, False),
        (2**12, 32, 1, True),
        (2**12, 32, 2, False),
        (2**16, 16, 1, False),
    ],
)
def test_only_small_networks_are_written_out_and_larger_ones_on_tensors_of_medium_size(
    size, hidden_size, hidden_layers, written_out, getkey
):
    assert _path_taken(size, hidden_size, hidden_layers, getkey) is written_out


def test_in_blocks_of_medium_size_only_small_networks_are_written_out(getkey):
    assert _path_taken(2**12, 4, 2, getkey, size=2**18)
    assert not _path_taken(2**12, 32, 1, getkey, size=2**18)


def test_only_networks_with_large_temporaries_ask_for_blocks(getkey):
    assert MLPHead(39, 2, hidden_size=32, hidden_layers=2, key=getkey()).blockwise
    assert not MLPHead(39, 2, hidden_size=4, hidden_layers=2, key=getkey()).blockwise
    assert not LinearHead(39, 2, key=getkey()).blockwise


@pytest.mark.parametrize("make", [MLPHead, LinearHead])
def test_the_number_of_channels_is_checked(make, getkey):
    with pytest.raises(ValueError, match="takes 9 channels, but the features yield 8"):
        make(9, 2, key=getkey())(_channels(getkey()), VIEW)


@pytest.mark.parametrize("change", [dict(in_size=0), dict(out_size=0), dict(hidden_size=0), dict(hidden_layers=0)])
def test_mlp_sizes_below_1_are_refused(change, getkey):
    sizes = dict(in_size=3, out_size=2, hidden_size=4, hidden_layers=1) | change
    with pytest.raises(ValueError, match="must be at least 1"):
        MLPHead(sizes.pop("in_size"), sizes.pop("out_size"), **sizes, key=getkey())


def test_initial_weights_are_truncated_normal_of_one_over_root_fan_in_and_biases_zero(getkey):
    head = MLPHead(64, 2, hidden_size=256, hidden_layers=1, key=getkey())
    linear = LinearHead(64, 256, key=getkey())
    truncated_std = 0.8796  # of a standard normal cut at two standard deviations, not corrected for
    for weight, fan_in in [(head.weights[0], 64), (linear.weight, 64), (head.weights[1], 256)]:
        # Within five standard errors of the estimate, which falls with the root of twice the number of draws.
        np.testing.assert_allclose(jnp.std(weight) * fan_in**0.5, truncated_std, rtol=5 / (2 * weight.size) ** 0.5)
        assert jnp.max(jnp.abs(weight)) * fan_in**0.5 <= 2.0 + 1e-6
    assert not any(jnp.any(b) for b in (*head.biases, linear.bias))
    assert (head.in_size, head.out_size, linear.in_size, linear.out_size) == (64, 2, 64, 256)


def test_a_residual_head_is_its_channel_at_first_and_then_adds_a_linear_map_and_a_network(getkey):
    features = _channels(getkey())
    head = ResidualHead(8, 1, hidden_size=3, hidden_layers=2, key=getkey())
    channel = _tiled(features)[:, 1].reshape(1, *SHAPE)
    np.testing.assert_allclose(head(features, VIEW), channel, rtol=1e-5)
    linear, mlp = LinearHead(8, 1, key=getkey()), MLPHead(8, 1, hidden_size=3, hidden_layers=2, key=getkey())
    learned = eqx.tree_at(lambda h: (h.linear, h.mlp), head, (linear, mlp))
    expected = channel + linear(features, VIEW) + mlp(features, VIEW)
    np.testing.assert_allclose(learned(features, VIEW), expected, rtol=1e-5, atol=1e-6)


def test_a_residual_head_adds_nothing_where_all_channels_are_zero(getkey):
    head = ResidualHead(2, 0, hidden_size=3, key=getkey())
    biased = eqx.tree_at(lambda h: (h.linear.bias, h.mlp.biases[-1]), head, (jnp.ones(1), jnp.ones(1)))
    values = jnp.stack([jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, 3.0, 0.0])])
    np.testing.assert_allclose(biased((Channels(values),), view_of(jnp.zeros(3))), [[0.0, 2.0, 4.0]])


@pytest.mark.parametrize("channel", [-1, 8])
def test_a_residual_head_needs_a_channel_that_exists(channel, getkey):
    with pytest.raises(ValueError, match=f"`channel` must be between 0 and 7, got {channel}"):
        ResidualHead(8, channel, key=getkey())


def test_each_rank_has_its_head(getkey):
    matrices, vectors = LinearHead(2, 1, key=getkey()), LinearHead(2, 1, key=getkey())
    head = HeadByRank(matrices, vectors)
    for shape, expected in [((3, 5), matrices), ((4, 3, 2), matrices), ((5,), vectors)]:
        features, view = (Channels(jax.random.normal(getkey(), (2, *shape))),), view_of(jnp.zeros(shape))
        np.testing.assert_array_equal(head(features, view), expected(features, view))
    with pytest.raises(ValueError, match=r"same sizes, got \(2, 1\) and \(3, 1\)"):
        HeadByRank(matrices, LinearHead(3, 1, key=getkey()))
