"""`infer_widths` finds the declarations of the library's layers from shapes, and handles Equinox's layers."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import KEY, Separable

from lo_components.nn import CNN, MLP, BatchNorm, ResNet, TransformerLM, ViT, declared_widths
from lo_components.parametrization import MuP, WidthSpec, infer_widths

# Functions from width, base width and two random sizes to a model. Widths are multiples of 16.
ZOO = {
    "mlp": lambda n, b, p, q: MLP(p, q, width=n, depth=1 + p % 3, base_width=b, key=KEY),
    "cnn": lambda n, b, p, q: CNN(p, q, width=n, depth=1 + q % 4, base_width=b, key=KEY),
    "resnet": lambda n, b, p, q: ResNet(p, q, blocks=(1, 1), width=n, base_width=b, key=KEY),
    "resnet, bottlenecks": lambda n, b, p, q: ResNet(
        p, q, blocks=(1, 1), bottleneck=True, norm=BatchNorm, large_stem=True, width=n, base_width=b, key=KEY
    ),
    "vit": lambda n, b, p, q: ViT((8, 8, p), q, patch_size=4, width=n, depth=1, heads=2, base_width=b, key=KEY),
    "lm": lambda n, b, p, q: TransformerLM(16 + p, width=n, depth=1, heads=2, max_length=8 + q, base_width=b, key=KEY),
    "separable": lambda n, b, p, q: Separable(n, MuP(), b, KEY),
}
sizes = st.integers(1, 12)


def residual_cleared(widths):
    """Declarations without `residual`, which cannot be inferred from shapes."""
    return [dataclasses.replace(w, residual=False) for w in jax.tree.leaves(widths)]


@settings(max_examples=3)
@pytest.mark.parametrize("name", ZOO)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), sizes, sizes)
def test_inferred_widths_are_the_declared_ones(name, base, ratio, absolute, p, q):
    base, target = 16 * base, 16 * base * ratio
    build = lambda width: ZOO[name](width, None if absolute else base, p, q)  # noqa: E731
    inferred = infer_widths(lambda n: ZOO[name](n, None, p, q), base, 2 * base, target, absolute=absolute)
    declared = declared_widths(eqx.filter_eval_shape(build, target))
    assert residual_cleared(inferred) == residual_cleared(declared)
    model = eqx.filter_eval_shape(lambda n: ZOO[name](n, None, p, q), target)
    expected = eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    assert jax.tree.structure(inferred) == jax.tree.structure(expected)


def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@given(st.integers(1, 4), sizes, sizes, st.integers(1, 3), st.permutations(["in", "hidden", "out", "bias", "kernel"]))
def test_plain_pytrees_in_either_layout_and_any_order(layout, ratio, inputs, outputs, kernel, order):
    def build(n):
        shapes = {"in": (n, inputs), "hidden": (2 * n, n), "out": (outputs, 2 * n), "bias": (n,)}
        shapes["kernel"] = (n, inputs, kernel, kernel)
        if layout == "in_out":
            shapes = {k: (*s[2:], s[1], s[0]) if len(s) > 1 else s for k, s in shapes.items()}
        return {k: zeros(*shapes[k]) for k in order}

    n, m = 8 * ratio, float(ratio)
    found = infer_widths(build, 8, 12, n, layout=layout)
    fields = {k: (w.role, w.fan_in, w.fan_in_mult, w.fan_out_mult) for k, w in found.items()}
    assert fields == {
        "in": ("input", inputs, 1.0, m),
        "hidden": ("hidden", n, m, m),
        "out": ("output", 2 * n, m, 1.0),
        "bias": ("vector", None, 1.0, m),
        "kernel": ("input", inputs * kernel**2, 1.0, m),
    }


class Zoo(eqx.Module):
    """A model of Equinox's own layers."""

    mlp: eqx.nn.MLP
    attention: eqx.nn.MultiheadAttention
    conv: eqx.nn.Conv2d
    grouped: eqx.nn.Conv2d
    transposed: eqx.nn.ConvTranspose2d
    cell: eqx.nn.GRUCell
    norms: tuple
    embedding: eqx.nn.Embedding
    stacked: eqx.nn.Linear

    def __init__(self, n):
        self.mlp = eqx.nn.MLP(3, 5, n, 2, key=KEY)
        self.attention = eqx.nn.MultiheadAttention(2, n, key=KEY)
        self.conv = eqx.nn.Conv2d(n, 2 * n, 3, key=KEY)
        self.grouped = eqx.nn.Conv2d(n, n, 3, groups=n, key=KEY)
        self.transposed = eqx.nn.ConvTranspose2d(n, 4, (2, 3), key=KEY)
        self.cell = eqx.nn.GRUCell(7, n, key=KEY)
        self.norms = (eqx.nn.LayerNorm(n), eqx.nn.GroupNorm(2, n))
        self.embedding = eqx.nn.Embedding(11, n, key=KEY)
        self.stacked = eqx.filter_vmap(lambda key: eqx.nn.Linear(n, n, key=key))(jax.random.split(KEY, 6))


def test_equinox_layers_are_known():
    found = infer_widths(Zoo, 8, 16, 32)
    fields = lambda w: (w.role, w.fan_in, w.fan_in_mult, w.fan_out_mult)  # noqa: E731
    first, hidden, readout = found.mlp.layers
    assert [fields(x.weight) for x in (first, hidden, readout)] == [
        ("input", 3, 1.0, 4.0),
        ("hidden", 32, 4.0, 4.0),
        ("output", 32, 4.0, 1.0),
    ]
    assert [fields(x.bias) for x in (first, hidden, readout)] == [("vector", None, 1.0, 4.0)] * 2 + [
        ("vector", None, 1.0, 1.0)
    ]
    projections = (found.attention.query_proj, found.attention.output_proj)
    assert [fields(x.weight) for x in projections] == [("hidden", 32, 4.0, 4.0)] * 2
    assert fields(found.conv.weight) == ("hidden", 32 * 9, 4.0, 4.0)
    assert fields(found.conv.bias) == ("vector", None, 1.0, 4.0)
    assert fields(found.grouped.weight) == ("input", 9, 1.0, 4.0)
    assert fields(found.transposed.weight) == ("output", 32 * 6, 4.0, 1.0)
    assert fields(found.cell.weight_ih) == ("input", 7, 1.0, 4.0)
    assert fields(found.cell.weight_hh) == ("hidden", 32, 4.0, 4.0)
    assert {fields(w) for w in jax.tree.leaves(found.norms)} == {("vector", None, 1.0, 4.0)}
    assert fields(found.embedding.weight) == ("input", 11, 1.0, 4.0)
    assert fields(found.stacked.weight) == ("hidden", 32, 4.0, 4.0)
    assert found.stacked.weight.shape == (6, 32, 32)


def test_a_role_given_by_path_overrides_the_shapes():
    build = lambda n: {"table": zeros(16, n)}  # noqa: E731
    assert infer_widths(build, 8, 12, 16)["table"].role == "output"
    table = infer_widths(build, 8, 12, 16, roles={"ta*": "input"})["table"]
    assert table == WidthSpec((16, 16), "input", 16, 1.0, 2.0)


SHARED = lambda n: (lambda w: {"a": w, "b": w})(zeros(5, n))  # noqa: E731
ERRORS = {
    "same widths": (lambda n: {"w": zeros(n, n)}, dict(delta=8), "must differ"),
    "different rates": (lambda n: {"w": zeros(n, n * n)}, {}, "`w` has axes that grow at different rates"),
    "another rank": (lambda n: {"w": zeros(*[n] * (1 + (n == 16)))}, {}, "`w` has different numbers of axes"),
    "other arrays": (lambda n: {f"w{n}": zeros(n)}, {}, "`build` returns different arrays"),
    "wide kernel": (lambda n: {"w": zeros(3, 4, n)}, {}, "`w` grows on axes"),
    "tied weights": (SHARED, {}, "tied weights"),
    "unused role": (lambda n: {"w": zeros(n, 3)}, dict(roles={"v": "input"}), "does not have: v"),
    "unknown role": (lambda n: {"w": zeros(n, 3)}, dict(roles={"w": "head"}), "the role 'head'"),
    "frozen at delta": (lambda n: {"w": zeros(max(n, 12), 3)}, dict(delta=12, base=10), "choose another `delta`"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_shapes_leave_open_is_an_error(name):
    build, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        infer_widths(build, **(dict(base=8, delta=12, target=16) | arguments))
