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
    # A kernel that comes first may be a stack of layers as well.
    axes = {"kernel": "kernel kernel in out"} if layout == "in_out" else {}
    found = infer_widths(build, 8, 12, n, layout=layout, axes=axes)
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
    with pytest.warns(UserWarning, match=r"`mlp/layers/\*/weight`, `transposed/weight`: the inputs grow"):
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


def fields(spec):
    return spec.role, spec.fan_in, spec.fan_in_mult, spec.fan_out_mult


def stack_of(n, length):
    """The shapes of a stack of layers in Haiku, Flax and a plain dictionary."""
    return {
        "__layer_stack_no_per_layer/linear": {"w": zeros(length, n, n), "b": zeros(length, n)},
        "__layer_stack_no_per_layer/__layer_stack_no_per_layer/layer_norm": {"scale": zeros(length, 3, n)},
        "ScanBlock_0": {
            "Dense_0": {"kernel": zeros(length, n, n), "bias": zeros(length, n)},
            "LayerNorm_0": {"scale": zeros(length, n), "bias": zeros(length, n)},
            "Conv_0": {"kernel": zeros(length, 3, n, n), "bias": zeros(length, n)},
        },
        "plain": {"w": zeros(length, n, n), "b": zeros(length, n)},
        "first": {"w": zeros(5, n), "b": zeros(n)},
    }


STACKS = {"ScanBlock_0/*": "stack ...", "plain/*": "stack ...", "*Conv_0/kernel": "kernel in out"}


@given(st.integers(1, 4), st.integers(1, 20).filter(lambda length: length != 5))
def test_stacked_layers_have_the_declarations_of_each_layer(ratio, length):
    n, m = 8 * ratio, float(ratio)
    found = infer_widths(lambda n: stack_of(n, length), 8, 12, n, layout="in_out", axes=STACKS)
    hidden, vector = ("hidden", n, m, m), ("vector", None, 1.0, m)
    haiku, inner, scanned, plain, first = (found[k] for k in stack_of(n, length))
    assert {k: fields(w) for k, w in haiku.items()} == {"w": hidden, "b": vector}
    assert fields(inner["scale"]) == vector
    assert {k: fields(w) for k, w in plain.items()} == {"w": hidden, "b": vector}
    assert {k: fields(w) for k, w in scanned["Dense_0"].items()} == {"kernel": hidden, "bias": vector}
    assert {k: fields(w) for k, w in scanned["LayerNorm_0"].items()} == {"scale": vector, "bias": vector}
    assert {k: fields(w) for k, w in scanned["Conv_0"].items()} == {"kernel": ("hidden", 3 * n, m, m), "bias": vector}
    assert {k: fields(w) for k, w in first.items()} == {"w": ("input", 5, 1.0, m), "b": vector}


class _GainedLayer(eqx.Module):
    linear: eqx.nn.Linear
    gamma: jax.Array

    def __init__(self, n, key):
        self.linear = eqx.nn.Linear(n, n, key=key)
        self.gamma = jnp.full(n, 0.1)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_an_array_beside_stacked_layers_must_be_declared(layout):
    """As a matrix, the gains would be sampled anew."""

    def build(n):
        return eqx.filter_vmap(lambda key: _GainedLayer(n, key))(jax.random.split(jax.random.key(0), 16))

    with pytest.raises(ValueError, match="`gamma`, of shape .16, 16., may be stacked like `linear/weight`"):
        infer_widths(build, 8, 12, 16, layout=layout)
    found = infer_widths(build, 8, 12, 16, layout=layout, axes={"gamma": "stack out"})
    assert (found.gamma.role, found.linear.weight.role, found.linear.weight.fan_in) == ("vector", "hidden", 16)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_a_first_axis_that_may_stack_layers_or_belong_to_a_kernel_must_be_declared(layout):
    """A guess would be a fan-in of 16 n, and biases that are inputs."""
    build = lambda n: {"w": zeros(16, n, n), "b": zeros(16, n)}  # noqa: E731
    with pytest.raises(ValueError, match=r"`w`.*`axes=\{'w': 'stack ...'\}` for stacked layers or 'kernel in out'"):
        infer_widths(build, 8, 12, 16, layout=layout)
    with pytest.raises(ValueError, match="`b`, of shape .16, 16., may be stacked like `w`"):
        infer_widths(build, 8, 12, 16, layout=layout, axes={"w": "stack in out"})
    found = infer_widths(build, 8, 12, 16, layout=layout, axes={"*": "stack ..."})
    assert (fields(found["w"]), fields(found["b"])) == (("hidden", 16, 2.0, 2.0), ("vector", None, 1.0, 2.0))
    kernel = {"w": "kernel in out", "b": "in out"}
    found = infer_widths(build, 8, 12, 16, layout=layout, axes=kernel)
    assert (fields(found["w"]), fields(found["b"])) == (("hidden", 256, 2.0, 2.0), ("input", 16, 1.0, 2.0))


def flax_attention(n, head, stack=()):
    """The shapes of Flax's `MultiHeadDotProductAttention`, with heads whose number grows."""
    inner = {"kernel": zeros(*stack, n, n // head, head), "bias": zeros(*stack, n // head, head)}
    outer = {"kernel": zeros(*stack, n // head, head, n), "bias": zeros(*stack, n)}
    return {"query": inner, "key": dict(inner), "value": dict(inner), "out": outer}


FLAX_ATTENTION = {"*/out/kernel": "in in out"}
for name in ("query", "key", "value"):
    FLAX_ATTENTION |= {f"*/{name}/kernel": "in out out", f"*/{name}/bias": "out out"}


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans(), st.booleans())
def test_the_attention_of_flax_is_declared_by_its_axes(ratio, head, absolute, stacked):
    n, m = 8 * ratio, float(8 * ratio if absolute else ratio)
    axes = FLAX_ATTENTION | ({"*": "stack ..."} if stacked else {})
    build = lambda n: flax_attention(n, head, (3,) if stacked else ())  # noqa: E731
    copied = lambda n: jax.tree.map(lambda x: x + 0, build(n))  # noqa: E731
    found = infer_widths(copied, 8, 16, n, layout="in_out", axes=axes, absolute=absolute)
    for projection in ("query", "key", "value", "out"):
        assert fields(found[projection]["kernel"]) == ("hidden", n, m, m)
        assert fields(found[projection]["bias"]) == ("vector", None, 1.0, m)
        assert MuP().init_std(found[projection]["kernel"]) == n**-0.5


def test_roles_and_axes_are_read_before_shapes_are_judged():
    build = lambda n: {"w": zeros(n, 4, n), "v": zeros(n)}  # noqa: E731
    found = infer_widths(build, 8, 12, 16, axes={"w": "in stack out", "v": "in"})
    assert (fields(found["w"]), fields(found["v"])) == (("hidden", 16, 2.0, 2.0), ("output", 16, 2.0, 1.0))
    assert infer_widths(build, 8, 12, 16, roles={"w": "vector"})["w"].role == "vector"
    found = infer_widths(build, 8, 12, 16, axes={"w": "in in out"}, roles={"w": "input"})
    assert fields(found["w"]) == ("input", 64, 1.0, 2.0)


SHARED = lambda n: (lambda w: {"a": w, "b": w})(zeros(5, n))  # noqa: E731
ERRORS = {
    "same widths": (lambda n: {"w": zeros(n, n)}, dict(delta=8), "must differ"),
    "different rates": (lambda n: {"w": zeros(n, n * n)}, {}, "`w` has axes that grow at different rates"),
    "another rank": (lambda n: {"w": zeros(*[n] * (1 + (n == 16)))}, {}, "`w` has different numbers of axes"),
    "other arrays": (lambda n: {f"w{n}": zeros(n)}, {}, "`build` returns different arrays"),
    "wide kernel": (lambda n: {"w": zeros(3, 4, n)}, {}, "`w`, of shape .* has axes that may be"),
    "tied weights": (SHARED, {}, "tied weights"),
    "unused role": (lambda n: {"w": zeros(n, 3)}, dict(roles={"v": "input"}), "does not have: v"),
    "unknown role": (lambda n: {"w": zeros(n, 3)}, dict(roles={"w": "head"}), "the role 'head'"),
    "other words": (lambda n: {"w": zeros(n, 3)}, dict(axes={"w": "output input"}), "expected one of 'stack', 'in'"),
    "other rank": (lambda n: {"w": zeros(n, 3)}, dict(axes={"w": "in out out"}), "`w` as 'in out out', but it has 2"),
    "unused axes": (lambda n: {"w": zeros(n, 3)}, dict(axes={"v": "in out"}), "`axes` names arrays .* not have: v"),
    "two axes": (lambda n: {"w": zeros(n, 3)}, dict(axes={"w": "in out", "*": "out in"}), "in several ways"),
    "growing kernel": (lambda n: {"w": zeros(n, 3)}, dict(axes={"w": "kernel out"}), "call it 'in'"),
    "role of a vector": (lambda n: {"w": zeros(n)}, dict(roles={"w": "hidden"}), "`w`.* but it has no fan-in"),
    "absolute bias": (lambda n: {"bias": zeros(n, 3)}, dict(absolute=True), "`axes={'bias': 'out out'}` for heads"),
    "no layer stack": (lambda n: {"__layer_stack/w": zeros(n, 3)}, {}, "in a `layer_stack`, but"),
    "frozen at delta": (lambda n: {"w": zeros(max(n, 12), 3)}, dict(delta=12, base=10), "choose another `delta`"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_shapes_leave_open_is_an_error(name):
    build, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as error:
        infer_widths(build, **(dict(base=8, delta=12, target=16) | arguments))
    assert len(str(error.value)) < 600
