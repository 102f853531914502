"""What every head must do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import view_of

from lo_components import heads
from lo_components.features import Channels

_KEY = jax.random.key(0)
_RESIDUAL = eqx.tree_at(
    lambda h: (h.linear.weight, h.mlp.weights[-1]),
    heads.ResidualHead(5, 1, hidden_size=3, key=_KEY),
    replace_fn=lambda w: jax.random.normal(_KEY, w.shape),
)
TABLE = [
    heads.LinearHead(5, 2, key=_KEY),
    heads.MLPHead(5, 2, hidden_size=3, hidden_layers=1, key=_KEY),
    heads.MLPHead(5, 2, hidden_size=32, hidden_layers=2, key=_KEY),
    heads.MixedMLPHead(5, 2, num_networks=3, hidden_size=3, hidden_layers=1, scale=3.0, key=_KEY),
    heads.IdentityHead(5),
    heads.LeadingOutputs(heads.LinearHead(5, 3, key=_KEY), 2),
    heads.HeadByRank(heads.MLPHead(5, 2, hidden_size=3, key=_KEY), heads.LinearHead(5, 2, key=_KEY)),
    _RESIDUAL,
]
every_head = pytest.mark.parametrize(
    "head", TABLE, ids=["linear", "small_mlp", "large_mlp", "mixed_mlp", "identity", "leading", "by_rank", "residual"]
)

_CONTROLS = jnp.array([0.5, -1.0, 2.0])
VIEW = view_of(jnp.zeros((6, 4)), controls=_CONTROLS)
ROWS = view_of(jnp.zeros((2, 4)), controls=_CONTROLS)

apply = eqx.filter_jit(lambda head, features, view=VIEW: head(features, view))


@pytest.fixture
def features(getkey):
    full, row = jax.random.normal(getkey(), (2, 6, 4)), jax.random.normal(getkey(), (2, 6, 1))
    constant = jax.random.normal(getkey(), (1, 1, 1))
    return (
        Channels(full, jnp.array([0.3, 4.0]), 1e-5),
        Channels(row, jnp.array([2.0, 0.5]), eps=0.1),
        Channels(constant),
    )


def test_the_table_holds_every_head(concrete_classes):
    assert {type(h) for h in TABLE} == concrete_classes(heads, heads.AbstractHead)


@every_head
def test_outputs_have_the_declared_number_and_the_shape_of_the_tensor(head, features):
    sizes = {heads.IdentityHead: 5, heads.ResidualHead: 1}
    assert (head.in_size, head.out_size) == (5, sizes.get(type(head), 2))
    out = apply(head, features)
    assert (out.shape, out.dtype) == ((head.out_size, 6, 4), jnp.float32)
    assert isinstance(head.blockwise, bool)


@every_head
def test_outputs_are_pointwise_over_the_tensor(head, features):
    rows = tuple(
        Channels(c.values[:, 1:3] if c.values.shape[1] == 6 else c.values, c.mean_square, c.eps) for c in features
    )
    np.testing.assert_allclose(apply(head, rows, ROWS), apply(head, features)[:, 1:3], rtol=1e-5, atol=1e-6)


@every_head
def test_broadcast_and_lazily_scaled_channels_count_like_tiled_and_scaled_ones(head, features):
    tiled = tuple(Channels(jnp.broadcast_to(c.scaled(), (c.values.shape[0], 6, 4))) for c in features)
    np.testing.assert_allclose(apply(head, tiled), apply(head, features), rtol=1e-5, atol=1e-6)


@every_head
def test_grouping_of_channels_does_not_matter(head, features):
    split = tuple(
        Channels(c.values[i : i + 1], None if c.mean_square is None else c.mean_square[i : i + 1], c.eps)
        for c in features
        for i in range(c.values.shape[0])
    )
    np.testing.assert_allclose(apply(head, split), apply(head, features), rtol=1e-5, atol=1e-6)


@every_head
def test_every_channel_counts(head, features):
    out = apply(head, features)
    for i, c in enumerate(features):
        for j in range(c.values.shape[0]):
            changed = eqx.tree_at(lambda f, i=i: f[i].values, features, c.values.at[j].add(1.0))
            assert not jnp.allclose(apply(head, changed), out)


@every_head
def test_jit_equals_eager(head, features):
    np.testing.assert_allclose(head(features, VIEW), apply(head, features), rtol=1e-5, atol=1e-6)


@every_head
def test_all_arrays_are_meta_parameters_with_finite_gradients(head, features):
    vector = tuple(Channels(c.values[:, :, 0], c.mean_square, c.eps) for c in features)
    of_vector = view_of(jnp.zeros(6), controls=_CONTROLS)
    total = lambda h: jnp.sum(h(features, VIEW) ** 2) + jnp.sum(h(vector, of_vector) ** 2)  # noqa: E731
    gradient = eqx.filter_jit(eqx.filter_grad(total))(head)
    assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in jax.tree.leaves(gradient))
    assert len(jax.tree.leaves(gradient)) == len(jax.tree.leaves(eqx.filter(head, eqx.is_array)))


@every_head
def test_the_number_of_channels_is_checked(head, features):
    with pytest.raises(ValueError, match="takes 5 channels, but the features yield 4"):
        head(features[:2], VIEW)
