import hashlib
import json
import os
import random
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from helpers import SGD, Watch, run_python
from meta_helpers import Drift, assert_identical, quadratic_unroll

from lo_components import aggregators, features, meta, nn, optimizers, parametrization, recipes, schedules, weights
from lo_components._description import RESERVED, describe
from lo_components.estimators import PES
from lo_components.meta import init_meta_state, meta_optimizer
from lo_components.parametrization import PROPORTIONAL, every_leaf
from lo_components.weights import CheckpointError, load_arrays, save_arrays

FLOAT8 = (jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3fnuz, jnp.float8_e5m2fnuz)
TREE = {
    "weights": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
    "float16": jnp.asarray([1.5, jnp.inf], jnp.float16),
    "count": jnp.asarray(7, jnp.int32),
    "flags": jnp.asarray([True, False]),
    "empty": jnp.zeros((0, 3)),
    "nan": jnp.asarray([jnp.nan, -0.0]),
    "bytes": jnp.arange(3, dtype=jnp.uint8),
    "complex": jnp.asarray([1 + 2j, -3j], jnp.complex64),
    **{f"float8 {i}": jnp.asarray([0.5, -2.0, 448.0], dtype) for i, dtype in enumerate(FLOAT8)},
    "numpy": np.arange(4, dtype=np.float64).reshape(2, 2).T,
    "nested": ({"key": jax.random.key(3)}, [jax.random.split(jax.random.key(1), 4)]),
    "rbg": jax.random.key(5, impl="rbg"),
    "old key": jax.random.PRNGKey(2),
}


def blank(tree):
    """`tree` with other values in its arrays."""

    def other(x):
        if isinstance(x, np.ndarray):
            return np.ones_like(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jnp.zeros_like(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jnp.ones_like(x)

    return jax.tree.map(lambda x: other(x) if isinstance(x, jax.Array | np.ndarray) else x, tree)


def test_every_kind_of_array_survives(tmp_path):
    save_arrays(tmp_path / "a.safetensors", TREE)
    loaded, metadata = load_arrays(tmp_path / "a.safetensors", blank(TREE))
    assert_identical(loaded, TREE)
    assert metadata == {}
    assert isinstance(loaded["numpy"], np.ndarray)
    assert jax.random.key_impl(loaded["rbg"]) == jax.random.key_impl(TREE["rbg"])
    np.testing.assert_array_equal(jax.random.normal(loaded["rbg"], (3,)), jax.random.normal(TREE["rbg"], (3,)))
    np.testing.assert_array_equal(
        jax.random.normal(loaded["nested"][0]["key"]), jax.random.normal(TREE["nested"][0]["key"])
    )


def test_what_to_expect_may_be_given_as_shapes(tmp_path):
    tree = {name: x for name, x in TREE.items() if name != "numpy"}
    save_arrays(tmp_path / "a.safetensors", tree)
    loaded, _ = load_arrays(tmp_path / "a.safetensors", jax.eval_shape(lambda: tree))
    assert_identical(loaded, tree)
    assert jax.random.key_impl(loaded["rbg"]) == jax.random.key_impl(tree["rbg"])


def test_a_single_array_and_no_array_survive(tmp_path):
    for tree in (jnp.arange(3.0), {}, {"a": 1.5}):
        save_arrays(tmp_path / "a.safetensors", tree)
        assert_identical(load_arrays(str(tmp_path / "a.safetensors"), blank(tree))[0], tree)


def test_a_learned_optimizer_survives_and_keeps_its_constants(tmp_path):
    optimizer, other = (recipes.small_fc_lopt(key=jax.random.key(seed)) for seed in (0, 1))
    save_arrays(tmp_path / "a.safetensors", optimizer)
    loaded, _ = load_arrays(tmp_path / "a.safetensors", other)
    assert_identical(loaded, optimizer)
    longer = recipes.small_fc_lopt(step_mult=0.5, key=jax.random.key(1))
    loaded, _ = load_arrays(tmp_path / "a.safetensors", longer)
    assert constants_of(loaded) == constants_of(longer) != constants_of(optimizer)


def constants_of(learner):
    return [x for x in jax.tree.leaves(learner) if isinstance(x, float)]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_meta_state_survives(tmp_path, impl):
    estimator, optimizer = PES(quadratic_unroll(steps=10, window=5), num_pairs=2), meta_optimizer(10)
    state, other = (
        init_meta_state(
            Drift(jnp.full(3, value)), estimator, optimizer, key=jax.random.key(int(value), impl="threefry2x32")
        )
        for value in (1.0, 2.0)
    )
    state, other = (
        jax.tree_util.tree_map_with_path(
            lambda p, x, seed=seed: jax.random.key(seed, impl=impl) if jax.tree_util.keystr(p) == ".key" else x, s
        )
        for seed, s in enumerate((state, other))
    )
    save_arrays(tmp_path / "a.safetensors", state)
    assert_identical(load_arrays(tmp_path / "a.safetensors", other)[0], state)


def test_metadata_comes_back(tmp_path):
    metadata = {"step": 3, "config": {"name": "ä/b", "sizes": [1, 2.5], "none": None}}
    save_arrays(tmp_path / "a.safetensors", TREE, metadata=metadata)
    assert load_arrays(tmp_path / "a.safetensors", TREE)[1] == metadata


def test_other_readers_find_arrays_under_their_paths(tmp_path):
    save_arrays(tmp_path / "a.safetensors", {"layers": [{"w": jnp.ones(2)}], "n": jnp.asarray(3)})
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {name: array.shape for name, array in found.items()} == {"layers/0/w": (2,), "n": ()}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}, "lacks array `c`"),
        ({"a": jnp.ones(2)}, "has an unexpected array `b`"),
        ({"a": jnp.ones(2), "b": jnp.ones((3, 1))}, r"holds `b` as float32\[3\], expected float32\[3, 1\]"),
        ({"a": jnp.ones(2), "b": jnp.ones(3, int)}, r"holds `b` as float32\[3\], expected int32\[3\]"),
        ({"a": jnp.ones(2), "b": jnp.ones(3, jnp.bfloat16)}, r"holds `b` as float32\[3\], expected bfloat16\[3\]"),
        ({"a": jnp.ones(2), "b": jax.random.key(0)}, r"holds `b` as float32\[3\], expected uint32\[2\]"),
    ],
)
def test_another_structure_shape_or_dtype_is_named(tmp_path, like, message):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(CheckpointError, match=f"^`{path}` {message}"):
        load_arrays(path, like)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two arrays called `a/b`"):
        save_arrays(tmp_path / "a.safetensors", {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}})
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load_arrays(tmp_path / "nothing.safetensors", TREE)


SMALL = {"w": jnp.arange(6.0), "k": jax.random.key(3)}


def test_a_file_cut_short_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, SMALL, metadata={"step": 3})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"`{path}` is "):
            load_arrays(path, SMALL)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=f"`{path}` is "):
        load_arrays(path, SMALL)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_a_flipped_byte_anywhere_is_refused_by_name(tmp_path, mask):
    path = tmp_path / "a.safetensors"
    save_arrays(path, SMALL, metadata={"step": 3, "config": {"rate": 0.25}})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        with pytest.raises(CheckpointError, match=f"`{path}` "):
            load_arrays(path, SMALL)


def raw_safetensors(dtype, size):
    header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(2 * size)


FOREIGN = {
    "without metadata": safetensors.numpy.save({"w": np.ones(3)}),
    "other metadata": safetensors.numpy.save({"w": np.ones(3)}, metadata={"format": "pt"}),
    "wrong checksum": safetensors.numpy.save({"w": np.ones(3)}, metadata={"metadata": "{}", "sha256": "0"}),
    "no checksum and an unusual dtype": raw_safetensors("F8_E4M3", 1),
    "text": b"this is not a checkpoint, but a long enough text",
    "huge header": b"\xff" * 8 + b"{}",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused_by_name(tmp_path, case):
    path = tmp_path / "a.safetensors"
    path.write_bytes(FOREIGN[case])
    with pytest.raises(CheckpointError, match=f"`{path}` is "):
        load_arrays(path, {"w": np.ones(3)})
    assert path.read_bytes() == FOREIGN[case]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, error):
    path = tmp_path / "a.safetensors"
    save_arrays(path, SMALL)
    old = path.read_bytes()

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        with pytest.raises(type(error)):
            save_arrays(path, {"w": jnp.zeros(100)})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_is_complete_before_it_appears(tmp_path, monkeypatch):
    path, replace, seen = tmp_path / "a.safetensors", os.replace, []

    def check(source, target):
        assert not path.exists()
        seen.append(load_arrays(source, blank(SMALL))[0])
        replace(source, target)

    monkeypatch.setattr(os, "replace", check)
    save_arrays(path, SMALL)
    (tree,) = seen
    assert_identical(tree, SMALL)


def test_concurrent_writers_leave_one_of_their_files_whole(tmp_path):
    path, failures = tmp_path / "a.safetensors", []
    trees = [{"w": np.full(5000, i, np.float32)} for i in range(4)]
    save_arrays(path, trees[0])

    def write(tree):
        for _ in range(10):
            save_arrays(path, tree)

    def read():
        for _ in range(40):
            try:
                loaded = load_arrays(path, trees[0])[0]["w"]
                assert loaded.min() == loaded.max()
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(tree,)) for tree in trees] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    read()
    assert not failures


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3b11fnuz", "complex128"])
def test_a_dtype_that_safetensors_lacks_is_named_before_anything_is_written(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"`a/b` is {dtype}, which safetensors cannot hold"):
        save_arrays(tmp_path / "a.safetensors", {"a": {"b": np.zeros(3, jnp.dtype(dtype))}})
    assert not list(tmp_path.iterdir())


def test_metadata_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Metadata must be anything JSON can hold"):
        save_arrays(tmp_path / "a.safetensors", SMALL, metadata={"key": {1, 2}})
    assert not list(tmp_path.iterdir())


# Names from before learners held a pipeline.


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("pipeline/head/weights/0", "head/weights/0"),
        ("pipeline/head/weights/0", "optimizer/head/weights/0"),
        ("optimizer/pipeline/head/weights/0", "optimizer/head/weights/0"),
        ("aggregator/pipeline/head/weights/0", "aggregator/optimizer/head/weights/0"),
        ("optimizer/optimizer/pipeline/accumulators/1", "optimizer/optimizer/accumulators/1"),
        ("pipeline/head/weights/0", "pipeline/head/weights/0"),
    ],
)
def test_arrays_from_before_pipelines_are_found_under_their_names_of_today(tmp_path, now, before):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {before: jnp.arange(3.0), "other": jnp.ones(2)}, metadata={"name": "old"})
    loaded, card = load_arrays(path, {now: jnp.zeros(3), "other": jnp.zeros(2)})
    assert_identical(loaded, {now: jnp.arange(3.0), "other": jnp.ones(2)})
    assert card == {"name": "old"}


@pytest.mark.parametrize("before", ["head", "my_pipeline/head", "pipelines/head", "x/head"])
def test_other_names_are_not_translated(tmp_path, before):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {before: jnp.zeros(3)})
    with pytest.raises(CheckpointError, match="array"):
        load_arrays(path, {"a/pipeline/head": jnp.zeros(3)})


def test_an_array_is_not_taken_from_another_that_is_expected_under_its_own_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"head": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match="lacks array `pipeline/head`"):
        load_arrays(path, {"pipeline/head": jnp.ones(3), "head": jnp.ones(3)})


# Learners that know what they are.


class Sign(features.AbstractFeature):
    """A feature of the user's own."""

    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        return (features.Channels(jnp.sign(view.grad[None])),)


class Anything(optimizers.AbstractOptimizer):
    """An optimizer of the user's own: the gradient times a learned number, whatever else it holds."""

    rate: jax.Array
    others: Any

    def update_rules(self, params):
        return every_leaf(params, PROPORTIONAL)

    def init(self, params):
        return None

    def update(self, grads, state, params, *, context=optimizers.StepContext()):
        return jax.tree.map(lambda g: self.rate * g, grads), state


class Checked(eqx.Module):
    value: Any

    def __check_init__(self):
        if self.value < 0:
            raise ValueError(f"`value` must not be negative, got {self.value}.")


KEY = jax.random.key(7)
SMALL_SIZE = dict(hidden_size=3, hidden_layers=1)
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.asarray([0.5, -0.25]), "s": jnp.asarray(0.1)}
SCALES = {"w": 0.25, "b": 1.0, "s": 2}


def rate(x):
    return SGD(jnp.asarray(x, jnp.float32))


LEARNERS = {
    "small_fc_lopt": lambda: recipes.small_fc_lopt(**SMALL_SIZE, key=KEY),
    "mulo": lambda: recipes.mulo(**SMALL_SIZE, key=KEY),
    "lolv2": lambda: recipes.lolv2(**SMALL_SIZE, key=KEY),
    "velo": lambda: recipes.velo(lstm_size=3, num_networks=2, **SMALL_SIZE, key=KEY),
    "celo": lambda: recipes.celo(lstm_size=3, **SMALL_SIZE, key=KEY),
    "celo_adam": lambda: recipes.celo_adam(lstm_size=3, key=KEY),
    "sinv6": lambda: recipes.sinv6(lstm_size=3, key=KEY),
    "celo2": lambda: recipes.celo2(0.1, weight_decay=0.2, **SMALL_SIZE, key=KEY),
    "lagg_a": lambda: recipes.lagg_a(3, **SMALL_SIZE, key=KEY),
    "lopt_a": lambda: recipes.lopt_a(**SMALL_SIZE, step_mult=0.3, key=KEY),
    "lagg": lambda: recipes.lagg(3, **SMALL_SIZE, key=KEY),
    "lopt": lambda: recipes.lopt(**SMALL_SIZE, key=KEY),
    "pooled_lagg_a": lambda: recipes.pooled_lagg_a(embedding_size=2, **SMALL_SIZE, key=KEY),
    "SGD": lambda: SGD(0.1),
    "SGD, learned": lambda: rate(0.1),
    "OptaxOptimizer": lambda: optimizers.OptaxOptimizer(
        optax.sgd, 0.1, momentum=0.9, accumulator_dtype=jnp.dtype("float32")
    ),
    "OptaxOptimizer, declared": lambda: optimizers.OptaxOptimizer(optax.sgd, 0.1, update_rule=PROPORTIONAL),
    "OptaxOptimizer, Muon": lambda: optimizers.OptaxOptimizer(
        optax.sgd, 0.1, update_rule=parametrization.RuleByRank(PROPORTIONAL, parametrization.SCALE_FREE)
    ),
    "Scaled, arrays": lambda: optimizers.Scaled(rate(0.1), jax.tree.map(jnp.float32, SCALES)),
    "Scaled": lambda: optimizers.Scaled(recipes.lolv2(**SMALL_SIZE, key=KEY), SCALES),
    "Clipped": lambda: optimizers.Clipped(rate(0.1), 0.5),
    "Decayed": lambda: optimizers.Decayed(rate(0.1), jnp.asarray(0.01, jnp.float32), min_ndim=2),
    "nested": lambda: optimizers.Decayed(
        optimizers.Scaled(optimizers.Clipped(recipes.mulo(**SMALL_SIZE, key=KEY), 1), SCALES), 0.1
    ),
    "Mean": lambda: aggregators.Mean(),
    "SlowMo": lambda: aggregators.SlowMo(0.5, jnp.asarray(0.9)),
    "OuterOptimizer": lambda: aggregators.OuterOptimizer(recipes.lolv2(**SMALL_SIZE, key=KEY)),
    "aggregators.Scaled": lambda: aggregators.Scaled(recipes.lopt(**SMALL_SIZE, key=KEY), SCALES),
    "aggregators.Scheduled": lambda: aggregators.Scheduled(
        aggregators.Mean(), schedules.OptaxSchedule(optax.linear_schedule, 1.0, 0.0, 4)
    ),
    "Screened": lambda: aggregators.Screened(aggregators.Scaled(aggregators.Mean(), SCALES), 5),
    "a user's class": lambda: Anything(jnp.asarray(0.5, jnp.float32), (Sign(), Checked(3))),
}
OWN = [Sign, Anything, Checked]


@eqx.filter_jit
def stepped(learner):
    """The update and the state after a step."""
    grads = jax.tree.map(lambda p: jnp.cos(3.0 * p), PARAMS)
    if isinstance(learner, optimizers.AbstractOptimizer):
        context = optimizers.StepContext(loss=2.0, num_steps=20)
        return learner.update(grads, learner.init(PARAMS), PARAMS, context=context)
    deltas = jax.tree.map(lambda g: jnp.stack([g, -2.0 * g, 0.5 * g]), grads)
    return learner.aggregate(deltas, learner.init(PARAMS), PARAMS)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_comes_back_bit_for_bit(tmp_path, name):
    path, learner = tmp_path / "a.safetensors", LEARNERS[name]()
    weights.save(path, learner, card={"name": name, "losses": [1.5, None]})
    loaded = weights.load(path, classes=OWN)
    assert jax.tree.structure(loaded) == jax.tree.structure(learner)
    assert_identical(loaded, learner)
    assert [type(x) for x in jax.tree.leaves(loaded)] == [type(x) for x in jax.tree.leaves(learner)]
    assert_identical(stepped(loaded), stepped(learner))
    assert weights.card(path) == {"name": name, "losses": [1.5, None]}
    # What can be loaded can be filled, and saved again to the same bytes.
    filled, card = load_arrays(path, loaded)
    assert_identical(filled, learner)
    assert card == weights.card(path)
    assert describe(loaded)[0] == describe(learner)[0]


def test_every_class_of_the_library_that_can_be_in_a_learner_is_known_by_a_public_name():
    """Every abstract class of a part has concrete ones, all of which a file may name."""
    from lo_components._description import _library

    known = _library()
    for package in ("accumulators", "features", "heads", "steps", "optimizers", "aggregators"):
        module = getattr(sys.modules["lo_components"], package)
        concrete = [
            cls
            for name, cls in vars(module).items()
            if isinstance(cls, type) and issubclass(cls, eqx.Module) and not name.startswith("Abstract")
        ]
        assert len(concrete) >= 2
        for cls in concrete:
            assert known[f"lo_components.{package}.{cls.__name__}"] is cls


EVERYTHING = {
    "numbers": (0, -1, 10**30, True, False, None, 0.1, -0.0, 1e-320, float("inf"), -float("inf")),
    "text": ["", "ä", "a/b", '"quoted"', "lo_components"],
    "empty": ([], (), {}, "", ((),)),
    "dtypes": (np.dtype("float32"), np.dtype("bfloat16"), np.dtype(bool), np.dtype("int8"), np.dtype(FLOAT8[0])),
    "functions": (optax.adam, optax.contrib.muon, optax.nadam, jax.nn.relu, jax.nn.tanh, optax.cosine_decay_schedule),
    "keys": {1: "an int", 2: {"1": "a string"}},
}


def test_everything_that_fields_may_hold_comes_back(tmp_path):
    widths = nn.declared_widths(nn.MLP(2, 1, width=4, depth=1, key=KEY))
    others = {**EVERYTHING, "a tree of dataclasses": widths, "arrays": TREE}
    path, learner = tmp_path / "a.safetensors", Anything(jnp.ones(2), others)
    weights.save(path, learner)
    loaded = weights.load(path, classes=[Anything])
    assert_identical(loaded.others["arrays"], TREE)
    assert isinstance(loaded.others["arrays"]["numpy"], np.ndarray)
    assert jax.random.key_impl(loaded.others["arrays"]["rbg"]) == "rbg"
    for name in EVERYTHING:
        assert repr(loaded.others[name]) == repr(others[name]), name
    assert eqx.tree_equal(loaded.others["a tree of dataclasses"], widths) is True
    assert loaded.others["functions"] == others["functions"]
    assert list(loaded.others) == list(others)


def test_nan_comes_back_and_dtype_classes_come_back_as_dtypes(tmp_path):
    path, others = tmp_path / "a.safetensors", (jnp.bfloat16, np.float32, float("nan"))
    weights.save(path, Anything(jnp.ones(1), others))
    learner = weights.load(path, classes=OWN)
    assert learner.others[:2] == (jnp.dtype("bfloat16"), jnp.dtype("float32")) and np.isnan(learner.others[2])


def test_scales_in_the_structure_of_a_model_come_back(tmp_path):
    model = nn.MLP(2, 1, width=4, depth=1, parametrization=parametrization.MuP(), base_width=2, key=KEY)
    learner = Anything(jnp.ones(1), parametrization.MuP().update_scales(nn.declared_widths(model), PROPORTIONAL))
    weights.save(tmp_path / "a.safetensors", learner)
    assert_identical(weights.load(tmp_path / "a.safetensors", classes=OWN), learner)


def local_class(name):
    class Local(eqx.Module):
        x: Any

    Local.__name__ = name
    return Local


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"a": [lambda x: x]}, r"`others/a/0` is a function, which a file cannot hold: use a module with fields"),
        ({"a": jnp.sin}, "`others/a` is a function"),
        ({"a": os.system}, "`others/a` is a function"),
        (optax.adam(0.1), "`others` is a GradientTransformation"),
        ((np.float64(0.1),), "`others/0` is a float64"),
        (1j, "`others` is a complex"),
        (b"bytes", "`others` is a bytes"),
        ({(1, 2): 3}, "`others` is a dict"),
        (Sign, "`others` is a class"),
        (np.floating, "`others` is a class"),
        (np.dtype(">f4"), "`others` is a Float32DType"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "two arrays are called `others/a/b`; rename a dictionary key"),
        ((local_class("Same")(1), local_class("Same")(2)), "Two classes are called `Same`; rename one"),
        (np.zeros(2, jnp.int4), "`others` is int4, which safetensors cannot hold"),
    ],
)
def test_what_a_file_cannot_hold_is_named_before_anything_is_written(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        weights.save(tmp_path / "a.safetensors", Anything(jnp.ones(1), others))
    assert not list(tmp_path.iterdir())


def test_what_is_no_learner_and_what_is_no_card_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for attempt, error, message in [
        (lambda: weights.save(path, recipes.mulo), TypeError, "learner"),
        (lambda: weights.save(path, rate(1), card={RESERVED: 1}), ValueError, "`card` must not have the key"),
        (lambda: weights.save(path, rate(1), card={"x": {1}}), ValueError, "JSON"),
        (lambda: weights.load(path, classes=[Sign()]), TypeError, "classes"),
        (lambda: weights.load(path, classes=[features.AbstractFeature]), TypeError, "`classes` must be concrete"),
        (lambda: weights.load(path, classes=[int]), TypeError, "`classes` must be concrete dataclasses"),
        (lambda: weights.load(path, classes=[local_class("A"), local_class("A")]), ValueError, "Two classes are"),
        (lambda: weights.load(path), FileNotFoundError, "a.safetensors"),
        (lambda: weights.card(path), FileNotFoundError, "a.safetensors"),
    ]:
        with pytest.raises(error, match=message):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_class_that_was_not_passed_is_named_with_the_way_out(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, LEARNERS["a user's class"]())
    with pytest.raises(CheckpointError, match=rf"^`{path}` has a `Anything` at .*`load\(path, classes=\[Anything\]\)`"):
        weights.load(path)
    with pytest.raises(CheckpointError, match=r"has a `Sign` at `others/0`.*classes=\[Sign\].* by lo_components"):
        weights.load(path, classes=[Anything, Checked])


def test_a_class_is_not_replaced_by_one_of_other_fields(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, Anything(jnp.ones(1), local_class("Part")(1)))

    class Part(eqx.Module):
        y: Any

    with pytest.raises(CheckpointError, match="has a `Part` at `others` with an unknown field `x`"):
        weights.load(path, classes=[Anything, Part])


def test_arrays_without_a_description_are_not_a_learner(tmp_path):
    save_arrays(tmp_path / "a.safetensors", recipes.lolv2(key=KEY))
    with pytest.raises(CheckpointError, match=r"does not describe a learner: use `load_arrays\(path, like\)`"):
        weights.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: recipes.mulo(step_mult=1e-3, key=KEY), r"step_rule/step_mult` is 0.01 there, 0.001 here"),
        (lambda: recipes.mulo(exp_mult=1.0, step_mult=1.0, key=KEY), r"`.*step_mult` is .*; `.*exp_mult` is"),
        (lambda: recipes.small_fc_lopt(step_mult=0.01, rms_decay=0.9, **SIZE, key=KEY), r"is 0.999 there, 0.9 here"),
        (lambda: recipes.lolv2(step_mult=0.01, key=KEY), "entries there, .* entries here"),
        (lambda: recipes.lopt_a(step_mult=0.01, key=KEY), "it is LearnedOptimizer there, LearnedAggregator here"),
        (lambda: optimizers.Clipped(recipes.mulo(key=KEY), 1.0), "it is LearnedOptimizer there, Clipped here"),
        (lambda: {"learner": recipes.mulo(key=KEY)}, "it is LearnedOptimizer there, keys learner here"),
        (lambda: lambda x: x, "it is LearnedOptimizer there, a function here"),
    ],
)
def test_weights_for_another_constant_or_composition_are_refused_by_name(tmp_path, like, message):
    path = tmp_path / "mulo.safetensors"
    weights.save(path, recipes.mulo(key=KEY))
    with pytest.raises(CheckpointError, match=f"^`{path}` belongs to something else .*{message}.* `load"):
        load_arrays(path, like())


SIZE = {"hidden_size": 32, "hidden_layers": 2}


def test_weights_of_another_shape_are_refused_and_equal_numbers_are_not(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, recipes.mulo(key=KEY))
    with pytest.raises(CheckpointError, match=r"weights/0` as float32\[39, 32\], expected float32\[39, 8\]"):
        load_arrays(path, recipes.mulo(hidden_size=8, key=KEY))
    weights.save(path, optimizers.Clipped(rate(0.5), 1))
    loaded, _ = load_arrays(path, optimizers.Clipped(rate(0.0), 1.0))
    assert loaded.optimizer.hyperparameters["learning_rate"] == 0.5
    with pytest.raises(
        CheckpointError, match="array `optimizer/hyperparameters/learning_rate`: it belongs to something else"
    ):
        load_arrays(path, optimizers.Clipped(SGD(0.5), 1.0))


def test_constants_that_one_version_lacks_are_not_compared(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, Anything(jnp.ones(1), local_class("Part")(1)))

    class Part(eqx.Module):
        y: Any

    assert_identical(load_arrays(path, Anything(jnp.zeros(1), Part(2)))[0], Anything(jnp.ones(1), Part(2)))


def test_double_precision_is_not_lost_silently(tmp_path):
    path = tmp_path / "a.safetensors"
    with jax.enable_x64(True):
        learner = SGD(jnp.asarray(1 / 3, jnp.float64))
        weights.save(path, learner)
        assert weights.load(path).hyperparameters["learning_rate"].dtype == jnp.float64
    with pytest.raises(
        CheckpointError, match="holds `hyperparameters/learning_rate` as float64: first call .*jax_enable_x64"
    ):
        weights.load(path)


def test_a_learner_comes_out_of_a_checkpoint_without_task_or_estimator(tmp_path):
    pes = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
    learner = optimizers.Scaled(optimizers.Clipped(Drift(jnp.full(3, 0.1)), 5.0), 0.5)
    with jax.numpy_dtype_promotion("standard"):
        trained = meta.meta_train(
            learner,
            pes,
            num_steps=4,
            checkpoints=meta.Checkpoints(tmp_path, {"task": "quadratic"}, every=2),
            progress=None,
            key=KEY,
        )
    loaded = weights.load(tmp_path / "checkpoint-00000004.safetensors", classes=[Drift])
    assert jax.tree.structure(loaded) == jax.tree.structure(trained)
    assert_identical(loaded, trained)
    card = weights.card(tmp_path / "checkpoint-00000004.safetensors")
    assert card["step"] == 4 and card["config"] == {"task": "quadratic"} and card["meta_loss"] > 0


def test_a_learner_that_cannot_be_described_is_meta_trained_and_the_checkpoint_says_why_it_is_not_read(tmp_path):
    class Shaped(Drift):
        shape: Any = eqx.field(static=True, default=lambda x: x)

    with jax.numpy_dtype_promotion("standard"):
        meta.meta_train(
            Shaped(jnp.ones(3)),
            PES(quadratic_unroll(steps=10, window=5), num_pairs=2),
            num_steps=2,
            checkpoints=meta.Checkpoints(tmp_path, {}),
            progress=None,
            key=KEY,
        )
    with pytest.raises(CheckpointError, match="does not describe its learner, since `shape` is a function.*arrays"):
        weights.load(tmp_path / "checkpoint-00000002.safetensors")


# Files that nobody vouches for.


def parts_of(data):
    """Header, metadata and buffer of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(header["__metadata__"]["metadata"]), data[end:]


def signed(header, metadata, buffer):
    """A file with a digest that is right, as a hostile author would write it."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    header = {**header, "__metadata__": {"metadata": text, "file_sha256": 64 * "0"}}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    blank = len(raw).to_bytes(8, "little") + raw + buffer
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"file_sha256":"' + 64 * b"0", b'"file_sha256":"' + digest)


FUZZED = {
    "aggregator": lambda: recipes.lagg_a(2, hidden_size=2, hidden_layers=1, key=KEY),
    "wrapped": lambda: optimizers.Decayed(optimizers.Clipped(optimizers.Scaled(rate(0.1), SCALES), 1.0), 0.1),
    "own": lambda: Anything(
        jnp.ones(3), (Sign(), Checked(3), {"a": [1, 2.5, None]}, optax.adam, np.dtype("int8"), KEY, np.ones(2))
    ),
}


def files_to_change(folder):
    """Files by name, and the learners that they hold."""
    found = {}
    for name, make in FUZZED.items():
        weights.save(folder / name, make(), card={"name": name})
        found[name] = (folder / name).read_bytes(), make()
    return found


class Younger(eqx.Module):
    value: float
    added: float = eqx.field(default=2.0, static=True)


def test_a_field_that_is_younger_than_the_file_has_its_default(tmp_path):
    weights.save(tmp_path / "a", Younger(1.0))
    header, metadata, buffer = parts_of((tmp_path / "a").read_bytes())
    changed = json.loads(json.dumps(metadata).replace('"added": 2.0, ', ""))
    assert changed != metadata
    (tmp_path / "b").write_bytes(signed(header, changed, buffer))
    assert_identical(weights.load(tmp_path / "b", classes=[Younger]), Younger(1.0))


def test_the_files_written_here_are_read(tmp_path):
    for data, learner in files_to_change(tmp_path).values():
        (tmp_path / "a").write_bytes(signed(*parts_of(data)))
        assert_identical(weights.load(tmp_path / "a", classes=OWN), learner)


ROOT = {"class": "Anything", "fields": {"rate": {"array": "jax"}, "others": None}}
RATE = {"rate": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
DEEP = "in place of a deep nesting, which Python's `json` would not write"

HOSTILE = {
    "a class of Python": ({"class": "builtins.eval", "fields": {}}, "not part of this library"),
    "a function as a class": ({"class": "os.system", "fields": {"command": "id"}}, "not part of this library"),
    "a class of the library that is not there": (
        {"class": "lo_components.optimizers.Adamant", "fields": {}},
        "which lo_components .* does not have",
    ),
    "a class behind a module": ({"class": "lo_components.weights.os", "fields": {}}, "does not have"),
    "an abstract class": ({"class": "lo_components.features.AbstractFeature", "fields": {}}, "does not have"),
    "an unknown field": ({"class": "Checked", "fields": {"value": 1, "__class__": 2}}, "unknown field `__class__`"),
    "a method as a field": ({"class": "Checked", "fields": {"value": 1, "__check_init__": 2}}, "unknown field"),
    "a missing field": ({"class": "Checked", "fields": {}}, "without its field `value`"),
    "a broken invariant": ({"class": "Checked", "fields": {"value": -1}}, "must not be negative, got -1"),
    "a type an invariant cannot take": (
        {"class": "Checked", "fields": {"value": "x"}},
        "invalid `Checked` at `others`",
    ),
    "more than a class": ({"class": "Checked", "fields": {"value": 1}, "more": 1}, "which has no meaning"),
    "a function of Python": ({"function": "os.system"}, "which has no meaning"),
    "a dotted function": ({"function": "optax.adam.__globals__"}, "which has no meaning"),
    "a module as a function": ({"function": "optax.contrib"}, "which has no meaning"),
    "a class as a function": ({"function": "optax.GradientTransformation"}, "which has no meaning"),
    "a private function": ({"function": "optax._src"}, "which has no meaning"),
    "an unknown tag": ({"pickle": "gASVHwAAAAAAAACM"}, "which has no meaning"),
    "two tags": ({"tuple": [], "float": "inf"}, "which has no meaning"),
    "no tag": ({}, "which has no meaning"),
    "a float in words": ({"float": "1e999"}, "which has no meaning"),
    "an infinite number": (float("inf"), "which has no meaning"),
    "a key twice": ({"dict": [["a", 1], ["a", 2]]}, "which has no meaning"),
    "keys of two types": ({"dict": [["1", 1], [1, 2]]}, "which has no meaning"),
    "a key that is a list": ({"dict": [[["a"], 1]]}, "which has no meaning"),
    "a dictionary of no pairs": ({"dict": [1, 2]}, "which has no meaning"),
    "a tuple of no list": ({"tuple": 10**9}, "which has no meaning"),
    "a dtype of objects": ({"dtype": "object"}, "which has no meaning"),
    "a huge dtype": ({"dtype": "S1000000000000"}, "which has no meaning"),
    "a structured dtype": ({"dtype": "f8,f8"}, "which has no meaning"),
    "an array that is not there": ({"array": "jax"}, "lacks array `others`"),
    "an unknown kind of array": ({"array": "object"}, "which has no meaning"),
    "an unknown kind of key": ({"key": "evil"}, "lacks array `others`"),
    "deep nesting": (DEEP, "recursion"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_refused_with_the_reason(tmp_path, case):
    others, message = HOSTILE[case]
    path, description = tmp_path / "a.safetensors", {**ROOT, "fields": {**ROOT["fields"], "others": others}}
    metadata = json.dumps({RESERVED: {"version": "0.1.0", "prefix": "", "learner": description}})
    metadata = metadata.replace(json.dumps(DEEP), 3000 * '{"tuple": [' + "1" + 3000 * "]}")
    path.write_bytes(signed(RATE, metadata, bytes(4)))
    with pytest.raises(CheckpointError, match=f"^`{path}` .*{message}"):
        weights.load(path, classes=OWN)
    with pytest.raises(CheckpointError, match=f"^`{path}` "):
        load_arrays(path, Anything(jnp.ones(1), Anything(jnp.ones(1), 1)))


@pytest.mark.parametrize("origin", [None, 5, [], {}, {"learner": ROOT}, {"version": 1, "prefix": "", "learner": ROOT}])
def test_a_description_without_its_frame_is_refused(tmp_path, origin):
    path = tmp_path / "a.safetensors"
    path.write_bytes(signed(RATE, {RESERVED: origin}, bytes(4)))
    with pytest.raises(CheckpointError, match=f"^`{path}` does not describe a learner"):
        weights.load(path, classes=OWN)


@pytest.mark.parametrize("root", [5, None, [], {"tuple": []}, {"array": "jax"}])
def test_what_is_described_must_be_a_module(tmp_path, root):
    path = tmp_path / "a.safetensors"
    header = {"": RATE["rate"]} if root == {"array": "jax"} else {}
    metadata = {RESERVED: {"version": "0.1.0", "prefix": "", "learner": root}}
    path.write_bytes(signed(header, metadata, bytes(4 * len(header))))
    with pytest.raises(CheckpointError, match="does not describe a module"):
        weights.load(path, classes=OWN)


def mangled(rng, data):
    """`data` with some of its bytes changed, and its digest as it was."""
    changed, size = bytearray(data), len(data)
    header = 8 + int.from_bytes(data[:8], "little")
    kind = rng.choice(["bit", "bytes", "cut", "swap", "append", "copy", "header", "length"])
    i, j = sorted(rng.sample(range(size), 2))
    match kind:
        case "bit":
            changed[i] ^= 1 << rng.randrange(8)
        case "bytes":
            changed[i : i + 8] = rng.randbytes(8)
        case "cut":
            del changed[i:]
        case "swap":
            n = min(rng.randrange(1, 64), j - i)
            changed[i : i + n], changed[j : j + n] = changed[j : j + n], changed[i : i + n]
        case "append":
            changed += rng.randbytes(rng.randrange(1, 16))
        case "copy":
            del changed[i : min(j, i + 100)]
        case "header":
            text = rng.choice([b'"', b"{", b"}", b"[", b"0", b",", b"1e9", b"\\u0000", b"null", b"learner", b"class"])
            at = rng.randrange(8, header)
            changed[at : at + rng.randrange(4)] = text
        case "length":
            changed[:8] = rng.choice([0, 1, header, size, 2**40, 2**63, header - 9]).to_bytes(8, "little")
    return bytes(changed)


JUNK = [
    None, True, 0, -1, 3, 10**30, 0.5, -0.0, 1e308, "", "os.system", "jax", [], {}, [1, [2]], {"tuple": []},
    *(others for others, _ in HOSTILE.values() if others is not DEEP),
    {"function": "optax.sgd"}, {"dict": [["w", 1.0]]}, {"dict": [[1, 2], ["1", 2]]}, {"array": "jax"},
    {"array": "numpy"},
    {"key": "threefry2x32"}, {"key": "rbg"}, {"float": "nan"}, {"float": "-inf"}, {"dtype": "bfloat16"},
    {"class": "Checked", "fields": {"value": 5}}, {"class": "lo_components.aggregators.Mean", "fields": {}},
    {"class": "lo_components.features.Momenta", "fields": {"size": 10**12}},
    {"class": "lo_components.features.WorkerDeltas", "fields": {"num_workers": 10**18}},
    {"class": "lo_components.meta.RunFolder", "fields": {"path": "/", "config": {"dict": []}}},
]  # fmt: skip


def places(root):
    """Every container from `root` on, with each of its keys."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        found += [(node, key) for key, _ in items]
        pending += [value for _, value in items if isinstance(value, dict | list)]
    return found


def forged(rng, data):
    """`data` with changed JSON or arrays, and a digest that is right."""
    header, metadata, buffer = parts_of(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        whole = places({"": metadata[RESERVED]})
        (node, key), (other, other_key) = rng.choice(whole), rng.choice(whole)
        names = [name for name in header if name != "__metadata__"]
        match rng.choice(["junk", "junk", "junk", "swap", "delete", "rename", "array", "name", "buffer", "text"]):
            case "junk":
                node[key] = json.loads(json.dumps(rng.choice(JUNK)))
            case "swap":
                node[key] = json.loads(json.dumps(other[other_key]))
            case "delete":
                del node[key]
            case "rename" if isinstance(node, dict):
                node[rng.choice(["class", "fields", "tuple", "x", "size", "__init__", "__class__"])] = node.pop(key)
            case "array" if names:
                entry = header[rng.choice(names)]
                entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
                    ["F64", "F8_E4M3", "I4", "U32", "object", [], [0], [2, 2], [-1], [2**62], [0, 2**40], [4, 0], None]
                )
            case "name" if names:
                header[rng.choice([*names, "x", "", "__metadata__x"])] = header.pop(rng.choice(names))
            case "buffer":
                buffer = rng.choice([buffer[:-1], buffer + b"\0", bytes(len(buffer)), rng.randbytes(len(buffer)), b""])
            case "text":
                text = list(json.dumps(metadata))
                text[rng.randrange(len(text))] = rng.choice('"{}[],:0eN\\a')
                return signed(header, "".join(text), buffer)
        if RESERVED not in metadata:
            break
    return signed(header, metadata, buffer)


def states(found, stored, fields=False):
    """Whether a description says what another one says. Objects may have more fields, those that have a default."""
    if isinstance(found, dict) and isinstance(stored, dict):
        same = found.keys() >= stored.keys() if fields else found.keys() == stored.keys()
        return same and all(states(found[key], value, key == "fields") for key, value in stored.items())
    if isinstance(found, list) and isinstance(stored, list):
        return len(found) == len(stored) and all(map(states, found, stored))
    return json.dumps(found) == json.dumps(stored)


def fuzz(folder, count, seed):
    """Load `count` changed files, half of them signed, and count the signed ones that were read."""
    files, path, watch = files_to_change(folder), folder / "changed", Watch()
    rng, valid, slowest, modules = random.Random(seed), 0, 0.0, set(sys.modules)

    def loaded(read):
        nonlocal slowest
        begin, watch.on = time.process_time(), True
        try:
            return read()
        except CheckpointError as error:
            watch.on = False
            assert str(error).startswith(f"`{path}` ")
            return None
        finally:
            watch.on, slowest = False, max(slowest, time.process_time() - begin)

    tracemalloc.start()
    for i in range(count):
        data, learner = files[rng.choice(list(files))]
        trusted = i % 2
        changed = forged(rng, data) if trusted else mangled(rng, data)
        path.write_bytes(changed)
        learners = loaded(lambda: weights.load(path, classes=OWN)), loaded(lambda: load_arrays(path, learner))  # noqa: B023
        if any(learner is not None for learner in learners):
            assert trusted or changed == data, "an unsigned change was loaded"
        if learners[0] is not None:
            description, arrays, _ = describe(learners[0])
            header, metadata, _ = parts_of(changed)
            assert states(description, metadata[RESERVED]["learner"])
            assert set(arrays) == set(header) - {"__metadata__"}
            valid += 1
    assert watch.seen == [] and set(sys.modules) == modules
    return {"valid": valid, "slowest": slowest, "megabytes": tracemalloc.get_traced_memory()[1] / 2**20}


def fuzz_elsewhere(folder, count, seed):
    """`fuzz` in a fresh interpreter, without the tests' import hook, which compiles code all the time."""
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_weights
print(json.dumps(test_weights.fuzz(Path({str(folder)!r}), {count}, {seed})))
"""
    result = run_python(code, timeout=1200)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_no_changed_file_is_loaded_silently_or_runs_anything(tmp_path):
    found = fuzz_elsewhere(tmp_path, 400, seed=0)
    assert 4 < found["valid"] < 100 and found["slowest"] < 5.0 and found["megabytes"] < 50


@pytest.mark.slow
def test_none_of_ten_thousand_changed_files_is_loaded_silently_or_runs_anything(tmp_path):
    found = fuzz_elsewhere(tmp_path, 10_000, seed=1)
    print(found)
    assert 100 < found["valid"] < 2_500 and found["slowest"] < 5.0 and found["megabytes"] < 50
