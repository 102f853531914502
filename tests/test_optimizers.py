import time
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, Adam, assert_close, normal_tree, run_python, view_of
from jaxtyping import Array, Float

from lo_components import recipes, theta
from lo_components.accumulators import AbstractAccumulator, FactoredSquares, Momentum, SquaredMomentum
from lo_components.features import (
    AbstractFeature,
    Channels,
    ColumnSquares,
    Concat,
    FactoredGradient,
    Gradient,
    InverseRoot,
    Momenta,
    NormalizedMomenta,
    Parameter,
    RMSNormalized,
    RowSquares,
    Squares,
    TimeEmbedding,
)
from lo_components.heads import LinearHead, MLPHead
from lo_components.optimizers import (
    Clipped,
    Decayed,
    LearnedOptimizer,
    OptaxOptimizer,
    Scaled,
    StepContext,
)
from lo_components.pipeline import Pipeline, PipelineState
from lo_components.steps import Direction, DirectionMagnitude

SHAPES = {
    "scalar": (),
    "empty": (0,),
    "empty_matrix": (3, 0),
    "vector": (4,),
    "matrix": (3, 5),
    "rank3": (2, 3, 2),
    "rank5": (1, 2, 2, 1, 3),
}


# Compilation is most of this file's time, so it is asked to optimize little where nothing depends on that.
LITTLE: dict[str, Any] = {"compiler_options": {"xla_backend_optimization_level": 0}}


@eqx.filter_jit(**LITTLE)
def update(optimizer, grads, state, params):
    return optimizer.update(grads, state, params)


@pytest.fixture(scope="module")
def optimizer():
    """small_fc_lopt, moved away from its initial biases and decays so that every part of theta matters."""
    start = recipes.small_fc_lopt(momentum_decays=(0.9,), factored_decays=(0.99,), key=jax.random.key(0))
    theta, static = eqx.partition(start, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.03 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(treedef.unflatten(moved), static)


@pytest.fixture(scope="module")
def all_shapes(optimizer):
    """Parameters of every rank with their first three gradients, updates and states."""
    params = normal_tree(SHAPES, jax.random.key(2))
    grads = [normal_tree(SHAPES, jax.random.key(3 + t)) for t in range(3)]
    state, updates, states = optimizer.init(params), [], []
    for g in grads:
        new, state = update(optimizer, g, state, params)
        updates.append(new)
        states.append(state)
    return params, grads, updates, states


def test_updates_and_states_have_the_shapes_of_every_rank(all_shapes, optimizer):
    params, _, updates, states = all_shapes
    for new, state in zip(updates, states, strict=True):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
        assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), (new, state)))
        expected = jax.tree.map(lambda x: (x.shape, x.dtype), optimizer.init(params))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == expected
    assert [int(s.step) for s in states] == [1, 2, 3]


def test_tensors_are_updated_independently_and_scalars_like_tensors_of_one_element(all_shapes, optimizer):
    params, grads, updates, _ = all_shapes
    two = lambda tree: {"one": tree["scalar"].reshape(1), "matrix": tree["matrix"]}  # noqa: E731
    state = optimizer.init(two(params))
    for g, expected in zip(grads, updates, strict=True):
        new, state = update(optimizer, two(g), state, two(params))
        assert_close(new, two(expected), rtol=1e-4)


def test_empty_tensors_keep_their_statistics(all_shapes, optimizer):
    params, _, _, states = all_shapes
    fresh = optimizer.init(params)
    for name in ("empty", "empty_matrix"):
        assert eqx.tree_equal(_of(states[-1], name), _of(fresh, name))


def _of(state, name):
    """The accumulators' states of one tensor."""
    return jax.tree.map(lambda tree: tree[name], state.accumulators, is_leaf=lambda x: isinstance(x, dict))


def test_jit_equals_eager(optimizer, getkey):
    params, grads = normal_tree({"w": (3, 5)}, getkey()), normal_tree({"w": (3, 5)}, getkey())
    state = optimizer.init(params)
    compiled = eqx.filter_jit(lambda *args: optimizer.update(*args))(grads, state, params)
    assert_close(compiled, optimizer.update(grads, state, params), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("grad_dtype", [jnp.bfloat16, jnp.float32])
def test_bfloat16_parameters_get_bfloat16_updates_from_float32_states(grad_dtype, optimizer, getkey):
    params = normal_tree({"w": (3, 5)}, getkey(), jnp.bfloat16)
    grads = normal_tree({"w": (3, 5)}, getkey(), grad_dtype)
    as_float32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731
    new, state = update(optimizer, grads, optimizer.init(params), params)
    expected, expected_state = update(optimizer, as_float32(grads), optimizer.init(params), as_float32(params))
    assert new["w"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(state.accumulators)} == {jnp.dtype("float32")}
    assert_close(state, expected_state)
    assert_close(new["w"], expected["w"].astype(jnp.bfloat16), rtol=2**-7)


def test_none_and_no_leaves_are_left_alone(optimizer, getkey):
    params = {"w": jnp.ones(4), "frozen": None, "none": []}
    new, state = update(optimizer, params, optimizer.init(params), params)
    assert (new["frozen"], new["none"]) == (None, [])
    assert new["w"].shape == (4,)
    new, state = update(optimizer, new, state, params)
    assert int(state.step) == 2
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}


def test_the_second_call_does_not_trace_again(optimizer, getkey):
    traces = 0

    @eqx.filter_jit
    def step(optimizer, grads, state, params):
        nonlocal traces
        traces += 1
        return optimizer.update(grads, state, params, context=StepContext(loss=jnp.float32(1.0)))

    params = {"w": jnp.ones((2, 3))}
    state = optimizer.init(params)
    for _ in range(3):
        new, state = step(optimizer, params, state, params)
        params = optax.apply_updates(params, new)
    assert traces == 1


def test_the_update_is_minus_the_step_multiplier_times_the_heads_output(getkey):
    head = eqx.tree_at(
        lambda h: (h.weight, h.bias), LinearHead(2, 1, key=getkey()), (jnp.array([[2.0], [0.5]]), jnp.array([3.0]))
    )
    optimizer = LearnedOptimizer(Pipeline((), Concat(Gradient(), Parameter()), head, Direction(0.1)))
    grads, params = jnp.array([1.0, -1.0]), jnp.array([4.0, 2.0])
    new, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(new, [-0.1 * (2.0 + 2.0 + 3.0), -0.1 * (-2.0 + 1.0 + 3.0)], rtol=1e-6)


def test_features_see_the_number_of_steps_before_this_one(getkey):
    head = eqx.tree_at(lambda h: h.weight, LinearHead(1, 1, key=getkey()), jnp.ones((1, 1)))
    optimizer = LearnedOptimizer(Pipeline((), TimeEmbedding((2.0,)), head, Direction(1.0)))
    params = {"w": jnp.ones((2, 3))}
    state = optimizer.init(params)
    for t in range(3):
        new, state = optimizer.update(params, state, params)
        np.testing.assert_allclose(new["w"], np.full((2, 3), -np.tanh(t / 2 - 1)), rtol=1e-5)


def test_features_see_statistics_that_include_this_gradient(getkey):
    head = eqx.tree_at(lambda h: h.weight, LinearHead(1, 1, key=getkey()), jnp.ones((1, 1)))
    optimizer = LearnedOptimizer(Pipeline((Momentum((0.5,)),), Momenta(1), head, Direction(1.0)))
    state = optimizer.init(jnp.zeros(2))
    first, state = optimizer.update(jnp.array([2.0, 4.0]), state, jnp.zeros(2))
    second, _ = optimizer.update(jnp.zeros(2), state, jnp.zeros(2))
    np.testing.assert_allclose([first, second], [[-1.0, -2.0], [-0.5, -1.0]], rtol=1e-6)


def _normalized_optimizer(hidden_size):
    normalized = RMSNormalized(
        Concat(Gradient(), Momenta(1), FactoredGradient(1), RowSquares(1), InverseRoot(ColumnSquares(1)))
    )
    features = Concat(normalized, Parameter(), TimeEmbedding((3.0,)))
    head = MLPHead(features.size, 2, hidden_size=hidden_size, key=jax.random.key(0))
    return LearnedOptimizer(Pipeline((Momentum((0.9,)), FactoredSquares((0.9,))), features, head, DirectionMagnitude()))


@pytest.fixture(scope="module")
def blockwise_optimizer():
    return _normalized_optimizer(32)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("lo_components._tree.BLOCKED_FROM", 48)
    monkeypatch.setattr("lo_components.pipeline._blocks.SIZE_ON_CPUS", 16)
    monkeypatch.setattr("lo_components.pipeline._blocks.PARTS_ON_CPUS", 2)


# With and without an overlapping last block; rows and columns of the same size. A small head takes mean squares in
# blocks, a large one is evaluated in blocks as well.
@pytest.mark.parametrize(("hidden_size", "loops"), [(4, 1), (32, 2)])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (53,), (12, 12), (1, 60), (3, 2, 4, 4)])
def test_evaluation_in_blocks_changes_nothing(shape, hidden_size, loops, getkey, request):
    optimizer = _normalized_optimizer(hidden_size)
    params, grads = jax.random.normal(getkey(), shape), jax.random.normal(getkey(), shape)
    state = optimizer.init(params)
    whole, _ = update(optimizer, grads, state, params)
    request.getfixturevalue("small_blocks")
    jitted = jax.jit(lambda g, s, p: optimizer.update(g, s, p)[0])
    assert jitted.lower(grads, state, params).as_text().count("stablehlo.while") == loops
    # A block may sum in another order: relative to the largest element, as elements near zero cancel.
    assert_close(jitted(grads, state, params), whole, rtol=0, atol=2e-6 * float(jnp.max(jnp.abs(whole))))


@pytest.mark.parametrize("shape", [(12, 8), (53,), (3, 2, 4, 4)])
def test_evaluation_in_blocks_of_accelerators_changes_nothing(shape, blockwise_optimizer, getkey, monkeypatch):
    params, grads = jax.random.normal(getkey(), shape), jax.random.normal(getkey(), shape)
    state = blockwise_optimizer.init(params)
    whole, _ = update(blockwise_optimizer, grads, state, params)
    monkeypatch.setattr("lo_components._tree.BLOCKED_FROM", 48)
    monkeypatch.setattr("lo_components.pipeline._blocks.SIZE_ELSEWHERE", 32)
    monkeypatch.setattr("jax.lax.platform_dependent", lambda *args, cpu, default: default(*args))
    jitted = jax.jit(lambda g, s, p: blockwise_optimizer.update(g, s, p)[0])
    assert jitted.lower(grads, state, params).as_text().count("stablehlo.while") == 2
    assert_close(jitted(grads, state, params), whole, rtol=0, atol=2e-6 * float(jnp.max(jnp.abs(whole))))


@pytest.mark.parametrize(("platform", "setting"), [("cpu", "ON_CPUS"), ("cuda", "ELSEWHERE"), ("tpu", "ELSEWHERE")])
def test_blocks_are_those_of_the_platform(platform, setting, blockwise_optimizer, monkeypatch):
    monkeypatch.setattr("lo_components._tree.BLOCKED_FROM", 48)
    monkeypatch.setattr("lo_components.pipeline._blocks.SIZE_ON_CPUS", 2**20)  # all of the tensor
    monkeypatch.setattr(f"lo_components.pipeline._blocks.SIZE_{setting}", 64)
    monkeypatch.setattr(f"lo_components.pipeline._blocks.PARTS_{setting}", 4)
    params = jnp.ones((32, 16))
    traced = jax.jit(lambda p: blockwise_optimizer.update(p, blockwise_optimizer.init(p), p)[0]).trace(params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Four parts of each axis, of which a block takes one row and four columns.
    assert text.count("stablehlo.while") == 2 and "tensor<4x1x4x4xf32>" in text


@pytest.mark.parametrize("shape", [(3, 15), (47,)])
def test_small_tensors_are_evaluated_whole(shape, blockwise_optimizer, small_blocks):
    params = jnp.ones(shape)
    lowered = jax.jit(lambda p: blockwise_optimizer.update(p, blockwise_optimizer.init(p), p)[0]).lower(params)
    assert "while" not in lowered.as_text()


@pytest.mark.parametrize(
    ("shape", "parts", "taken"),
    [
        ((1024, 1024), (8, 8), (4, 128)),
        ((2**18,), (8,), (2**12,)),
        ((1000, 1000), (8, 8), (4, 125)),  # the last block overlaps
        ((2, 2**20), (2, 8), (1, 2**11)),
        ((1, 2**20), (1, 8), (1, 2**12)),
        ((3, 3, 512, 512), (1, 1, 8, 8), (1, 1, 8, 64)),
        ((262147,), (1,), (2**15,)),  # a prime number: the last block overlaps
        ((8, 8, 8, 8, 8, 64), (1, 2, 8, 8, 8, 8), (1, 1, 1, 1, 1, 4)),  # parts of long axes are kept
    ],
)
def test_blocks_take_whole_rows_of_every_part(shape, parts, taken):
    from lo_components.pipeline._blocks import Blocks

    blocks = Blocks(shape, 2**15, 8)
    assert (blocks.parts, blocks.taken) == (parts, taken)


def test_blocks_of_huge_tensors_are_found_at_once():
    from lo_components.pipeline._blocks import Blocks

    started = time.process_time()
    for size in (2**25 + 35, 2**31 + 11):  # prime numbers
        assert Blocks((size,), 2**24, 64).taken == (2**24,)
    assert time.process_time() - started < 0.2


def test_without_normalization_and_with_a_small_head_nothing_is_evaluated_in_blocks(small_blocks, getkey):
    optimizer = LearnedOptimizer(Pipeline((), Gradient(), MLPHead(1, 1, hidden_size=4, key=getkey()), Direction(1.0)))
    params = jnp.ones((12, 5))
    lowered = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0]).lower(params)
    assert "while" not in lowered.as_text()


class _RelativeToMean(AbstractFeature):
    """g / mean |g|, which reduces over the tensor."""

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        return (Channels(view.grad[None] / jnp.mean(jnp.abs(view.grad))),)


class _Sign(AbstractFeature):
    """A feature of a user without fields."""

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        return (Channels(jnp.sign(view.grad)[None]),)


@pytest.mark.parametrize("shape", [(12, 5), (53,), (6, 5, 2)])
@pytest.mark.parametrize(
    ("feature", "in_blocks"),
    [
        (_RelativeToMean(), False),
        (Concat(RMSNormalized(Gradient()), _RelativeToMean()), False),
        (RMSNormalized(_RelativeToMean()), False),
        (_Sign(), True),
        (Concat(RMSNormalized(Gradient()), RMSNormalized(_Sign())), True),
    ],
)
def test_features_that_reduce_over_a_tensor_see_all_of_it(feature, in_blocks, shape, getkey, request):
    head = MLPHead(feature.size, 1, hidden_size=32, key=jax.random.key(0))
    optimizer = LearnedOptimizer(Pipeline((), feature, head, Direction()))
    rows = jnp.arange(1.0, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    params, grads = jnp.ones(shape), jax.random.normal(getkey(), shape) * rows
    whole, _ = optimizer.update(grads, optimizer.init(params), params)
    request.getfixturevalue("small_blocks")

    @eqx.filter_jit
    def update(optimizer):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    assert ("while" in update.lower(optimizer).as_text()) == in_blocks
    np.testing.assert_allclose(update(optimizer), whole, rtol=1e-4, atol=1e-7)


class _NormState(NamedTuple):
    norm: Float[Array, " c"]
    loss: Float[Array, " c"]


class _NormAndLoss(AbstractAccumulator[_NormState]):
    """The norm of the next parameter, times the step, and a moving average of the loss."""

    produces: ClassVar = _NormState

    def init(self, param):
        return _NormState(jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float32))

    def update(self, view, state):
        norm = jnp.sqrt(jnp.sum(jnp.square(view.param + view.grad)))[None] * (1.0 + view.step.astype(jnp.float32))
        return _NormState(norm, 0.5 * state.loss + 0.5 * view.required("loss")[None])

    def read(self, state):
        return state


class _TensorFeature(AbstractFeature):
    size: int = eqx.field(default=2, init=False, static=True)

    @property
    def requires(self):
        return frozenset({_NormState})

    def __call__(self, view):
        stat = view.stat(_NormState)
        return (Channels(view.spread(jnp.concatenate([stat.norm, stat.loss]))),)


@pytest.mark.parametrize("shape", [(12, 5), (53,), (1, 60)])
def test_accumulators_see_parameter_loss_and_step_and_their_statistics_may_be_of_the_whole_tensor(shape, small_blocks):
    feature = Concat(Gradient(), _TensorFeature())
    head = eqx.tree_at(
        lambda h: h.weight, LinearHead(3, 1, key=jax.random.key(0)), jnp.array([[0.0], [1.0], [1.0]], jnp.float32)
    )
    optimizer = LearnedOptimizer(Pipeline((_NormAndLoss(),), feature, head, Direction(1.0)))
    params, grads = jnp.full(shape, 2.0), jnp.ones(shape)
    step = jax.jit(lambda s, loss: optimizer.update(grads, s, params, context=StepContext(loss=loss)))
    _, state = step(optimizer.init(params), 4.0)
    updates, state = step(state, 6.0)
    norm = 2 * 3.0 * np.sqrt(np.prod(shape))
    np.testing.assert_allclose(updates, np.full(shape, -(norm + 0.5 * 6.0 + 0.25 * 4.0)), rtol=1e-5)


class _OfMatrices(AbstractAccumulator[_NormState]):
    """An accumulator that knows matrices only."""

    produces: ClassVar = _NormState

    def init(self, param):
        rows, _ = param.shape
        return _NormState(jnp.zeros(rows, jnp.float32), jnp.zeros(1, jnp.float32))

    def update(self, view, state):
        return state

    def read(self, state):
        return _NormState(jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float32))


def test_an_accumulator_sees_only_tensors_of_the_model():
    head = LinearHead(1, 1, key=jax.random.key(0))
    optimizer = LearnedOptimizer(Pipeline((_OfMatrices(),), Gradient(), head, Direction()))
    params = {"w": jnp.ones((4, 3))}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].shape == (4, 3)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e19, 1e25, 3e38])
def test_clipping_keeps_the_direction_of_gradients_of_any_size(size):
    grads = {"w": size * jnp.array([0.6, -0.8]), "b": jnp.zeros(2)}
    clipped = Clipped(SGD(1.0), 0.5)
    updates, _ = clipped.update(grads, clipped.init(grads), grads)
    expected = [-0.3, 0.4] if size > 0.5 else [-0.6 * size, 0.8 * size]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
    assert not updates["b"].any()


def test_gradients_in_float64_that_float32_cannot_hold_are_bounded():
    code = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import lo_components as loc
optimizer = loc.recipes.small_fc_lopt(key=jax.random.key(0))
params = {"w": jnp.ones((3, 2), jnp.float64)}
updates, _ = optimizer.update({"w": jnp.full((3, 2), 1e200)}, optimizer.init(params), params)
assert np.all(np.isfinite(updates["w"]))
"""
    run_python(code)


def test_a_state_whose_fields_depend_on_the_shape_is_refused():
    class Odd(AbstractAccumulator[Any]):
        produces: ClassVar = _NormState

        def init(self, param):
            return {"m": param} if param.ndim > 1 else {}

        def update(self, view, state):
            return state

        def read(self, state):
            return _NormState(jnp.zeros(1), jnp.zeros(1))

    optimizer = LearnedOptimizer(Pipeline((Odd(),), Gradient(), LinearHead(1, 1, key=jax.random.key(0)), Direction()))
    with pytest.raises(ValueError, match="same fields for tensors of every shape"):
        optimizer.init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})


RECIPES = {
    "small_fc_lopt": recipes.small_fc_lopt(key=jax.random.key(1)),
    "lolv2": recipes.lolv2(key=jax.random.key(1)),
    "mulo": recipes.mulo(key=jax.random.key(1)),
}


@pytest.mark.parametrize("size", [1e10, 1e16, 1e19, 1e25, 1e30, 3e38])
@pytest.mark.parametrize("recipe", RECIPES)
def test_huge_gradients_give_finite_updates_like_those_of_large_gradients(recipe, size, getkey):
    optimizer = RECIPES[recipe]
    shapes = {"w": (3, 4), "b": (4,), "s": ()}
    params, grads = normal_tree(shapes, getkey()), normal_tree(shapes, getkey())
    huge = jax.tree.map(lambda g: jnp.clip(g * size, -3.4e38, 3.4e38), grads)
    zero = jax.tree.map(jnp.zeros_like, grads)
    state = optimizer.init(params)
    updates, state_after = optimizer.update(huge, state, params)
    nothing, _ = optimizer.update(zero, state, params)
    for name in shapes:
        assert np.all(np.isfinite(updates[name]))
        # Not those of no gradient.
        assert not np.allclose(updates[name], nothing[name], rtol=1e-2)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state_after))
    again, _ = optimizer.update(grads, state_after, params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(again))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_that_are_not_finite_stay_visible(recipe, value):
    optimizer = RECIPES[recipe]
    params, grads = {"w": jnp.ones((3, 4))}, {"w": jnp.ones((3, 4)).at[0, 0].set(value)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert not np.all(np.isfinite(updates["w"]))


def test_compiled_products_mapped_over_32769_rows_equal_eager_ones(getkey):
    """jax 0.10.2 got the last rows of the first of these wrong on CPUs (jax issue 39103)."""
    matrix, rows = jax.random.normal(getkey(), (3, 3)), jax.random.normal(getkey(), (32769, 3))
    mapped = jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))
    np.testing.assert_allclose(jax.jit(mapped)(rows), mapped(rows), rtol=1e-4, atol=1e-4)

    make = lambda key: MLPHead(3, 2, hidden_size=32, hidden_layers=2, key=key)  # noqa: E731
    heads = eqx.filter_vmap(make)(jax.random.split(getkey(), 2))
    size_of_output = jax.vmap(lambda head: jnp.mean(jnp.square(head((Channels(rows.T),), view_of(rows[:, 0])))))
    np.testing.assert_allclose(jax.jit(size_of_output)(heads), size_of_output(heads), rtol=1e-5)


def test_mapping_over_theta_equals_a_loop(getkey):
    params, grads = normal_tree({"w": (3, 5)}, getkey()), normal_tree({"w": (3, 5)}, getkey())
    keys = jax.random.split(getkey(), 2)

    def one(optimizer):
        return optimizer.update(grads, optimizer.init(params), params)

    make = lambda k: recipes.small_fc_lopt(momentum_decays=(0.9,), factored_decays=(0.9,), key=k)  # noqa: E731
    many = eqx.filter_vmap(make)(keys)
    mapped, states = eqx.filter_jit(eqx.filter_vmap(one))(many)
    alone = eqx.filter_jit(one)
    for i, key in enumerate(keys):
        new, state = alone(make(key))
        assert_close(jax.tree.map(lambda x, i=i: x[i], (mapped, states)), (new, state), rtol=1e-4)


def test_gradients_with_respect_to_theta_are_finite_and_reach_every_part(all_shapes, optimizer):
    params, grads, _, states = all_shapes

    @eqx.filter_jit
    @eqx.filter_grad
    def meta_gradient(optimizer):
        new, _ = optimizer.update({"w": grads[1]["matrix"]}, state, {"w": params["matrix"]})
        return jnp.sum(jnp.square(params["matrix"] + new["w"]))

    state = PipelineState(states[0].step, jax.tree.map(lambda x: {"w": x}, _of(states[0], "matrix")))
    gradient = meta_gradient(optimizer)
    assert jax.tree.structure(gradient) == jax.tree.structure(eqx.filter(optimizer, eqx.is_inexact_array))
    for leaf in jax.tree.leaves(gradient):
        assert jnp.all(jnp.isfinite(leaf))
        assert jnp.any(leaf != 0)


def test_theta_is_the_arrays_and_nothing_else(optimizer):
    theta = eqx.filter(optimizer, eqx.is_array)
    assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype("float32")}
    assert len(jax.tree.leaves(theta)) == 3 + 3 + 3
    assert optimizer.pipeline.step_rule.step_mult == 1e-3


def _build(accumulators, features, head_sizes, step_rule=None):
    head = LinearHead(*head_sizes, key=jax.random.key(0))
    step_rule = DirectionMagnitude() if step_rule is None else step_rule
    return LearnedOptimizer(Pipeline(accumulators, features, head, step_rule))


def test_a_feature_without_its_accumulator_is_refused():
    with pytest.raises(ValueError, match="require SecondMoment, which no accumulator produces.*given: FirstMoment"):
        _build((Momentum(),), NormalizedMomenta(), (3, 2))
    with pytest.raises(ValueError, match=r"require FactoredSecondMoment, .*given: none"):
        _build((), Concat(Gradient(), RMSNormalized(InverseRoot(RowSquares(1)))), (2, 2))


def test_two_accumulators_of_the_same_statistic_are_refused():
    with pytest.raises(ValueError, match="Two accumulators produce the same statistic: FirstMoment"):
        _build((Momentum((0.9,)), SquaredMomentum(), Momentum((0.5,))), Gradient(), (1, 2))


def test_heads_that_fit_neither_features_nor_step_rule_are_refused():
    with pytest.raises(ValueError, match="yield 4 channels, but the head takes 3"):
        _build((Momentum(),), Concat(Momenta(), Gradient()), (3, 2))
    with pytest.raises(ValueError, match="returns 2 channels, but the step rule takes 1"):
        _build((), Gradient(), (1, 2), Direction())


def test_statistics_with_another_number_of_channels_than_features_declare_are_refused():
    optimizer = _build((SquaredMomentum((0.9, 0.99)),), Squares(), (1, 2))
    with pytest.raises(
        ValueError, match="takes 1 channels, but the features yield 2; check that each feature's `size`"
    ):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))


def test_state_of_other_parameters_is_refused(optimizer):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    with pytest.raises(ValueError, match="`state` must come from `init` with.*; it lacks `accumulators/0/m/b`"):
        optimizer.update(params, optimizer.init({"a": jnp.ones((2, 3))}), params)
    with pytest.raises(
        ValueError,
        match=r"`state` must come from.*at `accumulators/0/m/b` got float32\(1, 5\), expected float32\(1, 4\)",
    ):
        optimizer.update(params, optimizer.init({"a": jnp.ones((2, 3)), "b": jnp.ones(5)}), params)
    with pytest.raises(ValueError, match="`state` must come from `init` with parameters like these"):
        optimizer.update(params, recipes.lolv2(key=jax.random.key(0)).init(params), params)


CHECKS_WITHOUT_HOOK = """
import jax, jax.numpy as jnp
import lo_components as loc
from lo_components.optimizers import Clipped, OptaxOptimizer, Scaled
import optax

key = jax.random.key(0)
params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
learned = loc.recipes.lolv2(hidden_size=2, key=key)
optimizers = [learned, OptaxOptimizer(optax.adam, 0.1), OptaxOptimizer(optax.sgd, 0.1),
              Scaled(learned, {"w": 1.0, "b": 1.0}), Clipped(learned, 1.0),
              OptaxOptimizer(optax.sgd(0.1))]
ints = {"w": jnp.ones((2, 3), int), "b": jnp.ones(3, int)}
wrong_grads = {
    "structure": {"w": params["w"]},
    "shape": {"w": params["w"].T, "b": params["b"]},
    "rank": {"w": params["w"][0], "b": params["b"]},
    "dtype": ints,
    "list": {"w": [[1.0]], "b": params["b"]},
}
for optimizer in optimizers:
    name = type(optimizer).__name__
    state = optimizer.init(params)
    jax.eval_shape(optimizer.update, params, state, params)
    for what, grads in wrong_grads.items():
        try:
            optimizer.update(grads, state, params)
        except Exception as error:
            print(name, what, "grads" in str(error) or "params" in str(error))
        else:
            print(name, what, "passed silently")
    try:
        optimizer.init(ints)
    except Exception as error:
        print(name, "init", "params" in str(error))
    else:
        print(name, "init", "passed silently")
try:
    learned.update(params, OptaxOptimizer(optax.adam, 0.1).init(params), params)
except Exception as error:
    print("LearnedOptimizer state", "state" in str(error))
else:
    print("LearnedOptimizer state passed silently")
"""


def test_wrong_arguments_are_named_without_the_import_hook():
    result = run_python(CHECKS_WITHOUT_HOOK)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 6 * 6 + 1
    assert [line for line in lines if not line.endswith("True")] == []


PARAMS = {"w": (3, 4), "b": (4,)}


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipped_equals_optax(max_norm, getkey):
    params, grads = normal_tree(PARAMS, getkey()), normal_tree(PARAMS, getkey())
    clipped, state = Clipped(SGD(0.1), max_norm), optax.chain(optax.clip_by_global_norm(max_norm), optax.sgd(0.1))
    new, _ = clipped.update(grads, clipped.init(params), params)
    assert_close(new, state.update(grads, state.init(params), params)[0], rtol=1e-6)


def test_clipped_keeps_the_dtype():
    clipped = Clipped(SGD(1.0), 1.0)
    grads = {"w": jnp.full((2,), 2.0, jnp.bfloat16), "b": jnp.full((), 2.0)}
    new, _ = clipped.update(grads, clipped.init(grads), grads)
    assert new["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(new["b"], -2 / np.sqrt(12), rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_clipped_does_not_hide_a_gradient_that_is_not_finite(value):
    clipped = Clipped(SGD(1.0), 1.0)
    new, _ = clipped.update(jnp.array([value, 1.0]), clipped.init(jnp.ones(2)), jnp.ones(2))
    assert jnp.all(jnp.isnan(new))


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_max_norm_must_be_positive(max_norm):
    with pytest.raises(ValueError, match="`max_norm` must be positive"):
        Clipped(SGD(0.1), max_norm)


@pytest.mark.parametrize("as_scale", [float, jnp.float32, np.float64])
def test_scaled_multiplies_each_update_by_its_scale(as_scale, getkey):
    params, grads = normal_tree(PARAMS, getkey()), normal_tree(PARAMS, getkey())
    scaled = Scaled(SGD(0.1), {"w": as_scale(0.25), "b": as_scale(3.0)})
    new, state = scaled.update(grads, scaled.init(params), params)
    bare, bare_state = SGD(0.1).update(grads, SGD(0.1).init(params), params)
    assert_close(new, {"w": 0.25 * bare["w"], "b": 3.0 * bare["b"]}, rtol=1e-6)
    assert_close(state, bare_state)


def test_scaled_keeps_the_dtype_of_the_update():
    scaled = Scaled(SGD(1.0), {"w": 0.5, "b": jnp.float32(2.0)})
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    new, _ = scaled.update(params, scaled.init(params), params)
    assert_close(new, {"w": jnp.full(2, -0.5, jnp.bfloat16), "b": jnp.full(2, -2.0)})


def test_float_scales_are_constants_and_array_scales_can_be_mapped(getkey):
    params, grads = normal_tree(PARAMS, getkey()), normal_tree(PARAMS, getkey())
    for scales in ({"w": 0.5, "b": 2.0}, {"w": jnp.asarray(0.5), "b": jnp.asarray(2.0)}):
        assert not jax.tree.leaves(theta(Scaled(SGD(0.1), scales)))
    multipliers = jnp.array([0.5, 1.0, 2.0])

    def one(multiplier):
        scaled = Scaled(SGD(0.1), {"w": multiplier, "b": 1.0})
        return scaled.update(grads, scaled.init(params), params)[0]

    mapped = jax.vmap(one)(multipliers)
    for i, multiplier in enumerate(multipliers):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), one(multiplier), rtol=1e-6)


@pytest.mark.parametrize("scales", [{"w": 1.0}, {"w": 1.0, "c": 1.0}, [1.0, 1.0], 1.0, {"w": {"x": 1.0}, "b": 1.0}])
def test_scales_of_another_structure_are_refused(scales, getkey):
    params = normal_tree(PARAMS, getkey())
    scaled = Scaled(SGD(0.1), scales)
    with pytest.raises(ValueError, match="`scales` (must hold|holds) a number for"):
        scaled.init(params)
    with pytest.raises(ValueError, match="`scales` (must hold|holds) a number for"):
        scaled.update(params, SGD(0.1).init(params), params)


def test_a_wrapper_passes_the_context_on(getkey):
    seen = []

    def record(updates, state, params=None, *, value=None, num_steps=None, **_):
        seen.append((value, num_steps))
        return updates, state

    recorder = OptaxOptimizer(optax.GradientTransformationExtraArgs(lambda params: (), record))
    wrapped = Clipped(Scaled(recorder, {"w": 1.0}), 1.0)
    params = {"w": jnp.ones(2)}
    wrapped.update(params, wrapped.init(params), params, context=StepContext(loss=2.5, num_steps=7))
    assert [(float(v), int(n)) for v, n in seen] == [(2.5, 7)]


def test_step_context_takes_python_numpy_and_jax_scalars():
    for loss, num_steps in [
        (1.5, 10),
        (np.float64(1.5), np.int64(10)),
        (np.float32(1.5), 10),
        (jnp.array(1.5), jnp.array(10)),
    ]:
        context = StepContext(loss=loss, num_steps=num_steps)
        assert (context.loss_array().dtype, float(context.loss_array())) == (jnp.float32, 1.5)
        assert (context.num_steps_array().dtype, int(context.num_steps_array())) == (jnp.int32, 10)
    assert (StepContext().loss_array(), StepContext().num_steps_array()) == (None, None)


def test_factored_gradient_of_a_rank_one_gradient_is_its_sign(getkey):
    # g = a b^T has row and column means that factor exactly, so |g| times both factors is 1.
    head = eqx.tree_at(lambda h: h.weight, LinearHead(1, 1, key=getkey()), jnp.ones((1, 1)))
    optimizer = LearnedOptimizer(Pipeline((FactoredSquares((0.0,)),), FactoredGradient(1), head, Direction(1.0)))
    a, b = jnp.array([1.0, -2.0, 0.5]), jnp.array([3.0, 1.0, -1.0, 4.0])
    grads = jnp.outer(a, b)
    new, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(new, -jnp.sign(grads), rtol=1e-5)


def test_decay_is_subtracted_from_the_update_and_only_once(getkey):
    params = {"w": jax.random.normal(getkey(), (3, 2)), "b": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    decayed = Decayed(SGD(0.5), 0.1)
    updates, _ = decayed.update(grads, decayed.init(params), params)
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.5 - 0.1 * p, rtol=1e-6), updates, params)
    exempt = Decayed(SGD(0.5), 0.1, min_ndim=2)
    updates, _ = exempt.update(grads, exempt.init(params), params)
    np.testing.assert_array_equal(updates["b"], -0.5)
    np.testing.assert_allclose(updates["w"], -0.5 - 0.1 * params["w"], rtol=1e-6)


def test_decay_inside_of_scaling_is_scaled_and_around_it_is_not(getkey):
    params = {"w": jax.random.normal(getkey(), (3, 2))}
    grads, scales = jax.tree.map(jnp.zeros_like, params), {"w": 0.25}
    for optimizer, factor in (
        (Scaled(Decayed(SGD(1.0), 0.1), scales), 0.025),
        (Decayed(Scaled(SGD(1.0), scales), 0.1), 0.1),
    ):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], -factor * params["w"], rtol=1e-6)


def test_decayed_adam_is_adamw_of_optax(getkey):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes integers and floats
        params = {"w": jax.random.normal(getkey(), (3, 2))}
        ours, theirs = Decayed(Adam(0.01), 0.01 * 0.3), optax.adamw(0.01, weight_decay=0.3)
        our_state, their_state = ours.init(params), theirs.init(params)
        for _ in range(3):
            grads = {"w": jax.random.normal(getkey(), (3, 2))}
            our_updates, our_state = ours.update(grads, our_state, params)
            their_updates, their_state = theirs.update(grads, their_state, params)
            assert_close(our_updates, their_updates, rtol=1e-5, atol=0)


def test_decay_keeps_the_dtype_and_is_exact_in_bfloat16():
    params = {"w": jnp.full(2, 1.0, jnp.bfloat16)}
    decayed = Decayed(SGD(1.0), 2.0**-10)
    updates, _ = decayed.update(jax.tree.map(jnp.zeros_like, params), decayed.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["w"].astype(jnp.float32), -(2.0**-10))


def test_array_scales_put_in_after_construction_are_refused():
    """They would be meta-parameters."""
    scaled = eqx.tree_at(lambda s: s.scales, Scaled(SGD(0.1), 0.5), jnp.asarray(2.0))
    with pytest.raises(ValueError, match="`scales` must hold its arrays as `Constant`s"):
        scaled.init(jnp.ones(3))
