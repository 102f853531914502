import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from meta_helpers import Drift, assert_identical, quadratic_unroll

from lo_components import recipes
from lo_components.estimators import PES
from lo_components.interop import CheckpointError, load_arrays, save_arrays
from lo_components.meta import init_meta_state, meta_optimizer

TREE = {
    "weights": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
    "float16": jnp.asarray([1.5, jnp.inf], jnp.float16),
    "count": jnp.asarray(7, jnp.int32),
    "flags": jnp.asarray([True, False]),
    "empty": jnp.zeros((0, 3)),
    "nan": jnp.asarray([jnp.nan, -0.0]),
    "bytes": jnp.arange(3, dtype=jnp.uint8),
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
    assert load_arrays(tmp_path / "a.safetensors", longer)[0].pipeline.step_rule == longer.pipeline.step_rule


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
    "dtype unknown to NumPy": raw_safetensors("F8_E4M3", 1),
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
