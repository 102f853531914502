"""Splits, pipelines of batches with a position, and prefetching to the device."""

import json
import sys
import threading
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_python

from lo_components.data import (
    AbstractBatchIterator,
    ByteTokenizer,
    image_dataset,
    pipeline,
    prefetch_to_device,
    sample_batch,
    split_off,
    text_dataset,
    windows,
)

pytest.importorskip("grain")


def images(count=20, channels=3):
    """A data set whose labels number its images."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 2, channels), dtype=np.uint8)
    splits = {"train": (pixels, np.arange(count)), "test": (pixels[:3], np.arange(3))}
    return image_dataset(splits, num_classes=count, name="x")


def labels_of(iterator, batches):
    return np.concatenate([next(iterator)[1] for _ in range(batches)])


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_parts_split_off_are_disjoint_and_leave_the_rest():
    dataset = images(40)
    split = split_off(dataset, {"inner_valid": 0.1, "outer_valid": 0.25}, seed=3)
    labels = {name: part.labels.tolist() for name, part in split.splits.items()}
    assert {name: len(part) for name, part in labels.items()} == {
        "train": 26,
        "inner_valid": 4,
        "outer_valid": 10,
        "test": 3,
    }
    assert sorted(labels["train"] + labels["inner_valid"] + labels["outer_valid"]) == list(range(40))
    for name in ("train", "inner_valid", "outer_valid"):
        np.testing.assert_array_equal(
            split.splits[name].images, dataset.splits["train"].images[jnp.array(labels[name])]
        )
    assert (split.mean, split.std, split.num_classes) == (dataset.mean, dataset.std, 40)
    assert len(dataset.splits["train"].labels) == 40


def test_a_split_is_fixed_by_its_seed():
    def parts(seed, *names):
        split = split_off(images(40), {name: 0.25 for name in names}, seed=seed)
        return {name: split.splits[name].labels.tolist() for name in ("a", "b")}

    assert parts(1, "a", "b") == parts(1, "b", "a") != parts(2, "a", "b")
    assert parts(0, "a", "b")["a"] != list(range(10))


def test_text_can_be_split_off_too():
    dataset = text_dataset({"train": "abcdefghijklmnopqrs\n", "test": "abc\n"}, ByteTokenizer(), length=2)
    split = split_off(dataset, {"valid": 0.3})
    assert (split.splits["train"].shape, split.splits["valid"].shape) == ((7, 2), (3, 2))
    rows = np.concatenate([split.splits["train"], split.splits["valid"]])
    assert sorted(rows.tolist()) == sorted(dataset.splits["train"].tolist())


def test_splits_that_cannot_be_made_are_refused():
    for fractions, message in (
        ({"test": 0.1}, "There is a split called 'test' already"),
        ({"train": 0.1}, "There is a split called 'train' already"),
        ({"a": 0.0}, "must be between 0 and 1"),
        ({"a": -0.5}, "must be between 0 and 1"),
        ({"a": 1.0}, "must be between 0 and 1"),
        ({"a": float("nan")}, "must be between 0 and 1"),
        ({"a": 0.5, "b": 0.5}, "leave a split empty"),
        ({"a": 0.01}, "leave a split empty"),
    ):
        with pytest.raises(ValueError, match=message):
            split_off(images(), fractions)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pipeline_gives_the_batches_that_sampling_gives(channels):
    dataset = images(channels=channels)
    sampled, labels = sample_batch(dataset, 200, key=jax.random.key(0))
    table = dict(zip(labels.tolist(), np.asarray(sampled), strict=True))
    assert len(table) == 20
    with closing(pipeline(dataset, 5, seed=0)) as batches:
        for _, (x, y) in zip(range(8), batches, strict=False):
            assert type(x) is np.ndarray and (x.dtype, y.dtype, x.shape) == (np.float32, np.int32, (5, 2, 2, channels))
            np.testing.assert_array_equal(x, np.stack([table[label] for label in y.tolist()]))


def test_grey_images_are_normalized_in_a_pipeline_as_when_sampled():
    pixels = np.arange(32, dtype=np.uint8).reshape(8, 2, 2)
    dataset = image_dataset({"train": (pixels, np.arange(8))}, num_classes=8, name="x")
    with closing(pipeline(dataset, 8, seed=0, shuffle=False)) as batches:
        x, y = next(batches)
    np.testing.assert_array_equal(y, np.arange(8))
    sampled, labels = sample_batch(dataset, 50, key=jax.random.key(0))
    np.testing.assert_array_equal(sampled, x[np.asarray(labels)])


def test_each_epoch_has_each_example_once_in_a_new_order():
    with closing(pipeline(images(), 8, seed=0)) as batches:
        epochs = labels_of(batches, 15).reshape(6, 20)  # batches of 8 go across the ends of epochs of 20
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    with closing(pipeline(images(), 20, seed=0)) as same, closing(pipeline(images(), 20, seed=1)) as other:
        np.testing.assert_array_equal(labels_of(same, 6), epochs.ravel())
        following = labels_of(other, 5).reshape(5, 20)
    # Seeds are independent: the next seed's epochs are not this one's, one later.
    assert not {tuple(epoch) for epoch in epochs} & {tuple(epoch) for epoch in following}


def test_without_shuffling_or_repetition_the_source_comes_once_in_its_order():
    with closing(pipeline(images(), 8, seed=0, shuffle=False, repeat=False)) as batches:
        assert [y.tolist() for _, y in batches] == [list(range(8)), list(range(8, 16)), [16, 17, 18, 19]]
        with pytest.raises(StopIteration):
            next(batches)
    with closing(pipeline(images(), 30, seed=0, shuffle=False)) as batches:  # a batch longer than an epoch
        np.testing.assert_array_equal(labels_of(batches, 2), np.arange(60) % 20)
    with closing(pipeline(images(), 8, seed=0, repeat=False)) as batches:
        assert sorted(sum((y.tolist() for _, y in batches), [])) == list(range(20))


class Squares:
    """Examples that are computed when they are read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if not 0 <= index < 10:
            raise IndexError(index)
        return {"n": index, "square": np.full((2, 3), index**2, np.float32)}


def test_pipelines_of_text_arrays_and_computed_examples():
    text = text_dataset({"train": "abcdefgh\n", "test": "ijkl\n"}, ByteTokenizer(), length=2)
    with closing(pipeline(text, 4, seed=0, shuffle=False, split="test")) as batches:
        np.testing.assert_array_equal(next(batches), np.array(text.splits["test"])[[0, 1, 0, 1]])
    for array in (np.arange(6) * 2, jnp.arange(6) * 2, [0, 2, 4, 6, 8, 10]):
        with closing(pipeline(array, 4, seed=0, shuffle=False)) as batches:
            np.testing.assert_array_equal(next(batches), [0, 2, 4, 6])
    with closing(pipeline(Squares(), 4, seed=0)) as batches:
        batch = next(batches)
    assert batch["square"].shape == (4, 2, 3) and batch["square"].dtype == np.float32
    np.testing.assert_array_equal(batch["square"][:, 0, 0], batch["n"] ** 2)


def test_arguments_out_of_range_are_refused():
    for options, message in (
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"read_ahead": 0}, "`read_ahead` must be at least 1"),
        ({"split": "valid"}, r"`split` must be one of \['test', 'train'\], got 'valid'"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(images(), **{"batch_size": 4, "seed": 0, **options})
    with pytest.raises(ValueError, match="`split` is for data sets; a source of type Squares has none"):
        pipeline(Squares(), 4, seed=0, split="train")
    with pytest.raises(ValueError, match="`source` is empty"):
        pipeline([], 4, seed=0)
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        prefetch_to_device(pipeline(Squares(), 4, seed=0), 0)


def test_a_state_is_restored_exactly_and_fits_into_json():
    with closing(pipeline(images(), 8, seed=5)) as batches, closing(pipeline(images(), 8, seed=5)) as resumed:
        states, expected = [], []
        for _ in range(7):
            states.append(json.dumps(batches.state()))
            expected.append(next(batches))
        for i in (3, 0, 6, 1):
            resumed.restore(json.loads(states[i]))
            assert resumed.state() == json.loads(states[i])
            for batch in expected[i:]:
                assert_trees_equal(next(resumed), batch)
        batches.close()  # and goes on where it was
        resumed.restore(batches.state())
        assert_trees_equal(next(batches), next(resumed))


def test_a_state_at_the_end_of_a_single_pass():
    with closing(pipeline(images(), 8, seed=5, repeat=False)) as batches:
        assert len(list(batches)) == 3
        end = batches.state()
        batches.restore({**end, "batches": 2})
        assert next(batches)[1].shape == (4,)
        batches.restore(end)
        assert list(batches) == []


def test_states_of_other_pipelines_are_refused():
    state = pipeline(images(), 8, seed=5).state()
    for other in (
        pipeline(images(), 8, seed=6),
        pipeline(images(), 4, seed=5),
        pipeline(images(21), 8, seed=5),
        pipeline(images(), 8, seed=5, shuffle=False),
        pipeline(images(), 8, seed=5, repeat=False),
    ):
        with pytest.raises(ValueError, match="`state` is from another pipeline"):
            other.restore(state)
    once = pipeline(images(), 8, seed=5, repeat=False)
    for batches in (-1, 4):
        with pytest.raises(ValueError, match="no valid number of batches"):
            once.restore({**once.state(), "batches": batches})
    with pytest.raises(ValueError, match="no valid number of batches"):
        once.restore({name: value for name, value in once.state().items() if name != "batches"})


class Failing(Squares):
    def __getitem__(self, index):
        if index == 7:
            raise OSError("example 7 cannot be read")
        return super().__getitem__(index)


def test_an_error_in_a_source_reaches_the_caller():
    with closing(pipeline(Failing(), 4, seed=0, shuffle=False)) as batches:
        np.testing.assert_array_equal(next(batches)["n"], [0, 1, 2, 3])
        with pytest.raises(OSError, match="example 7 cannot be read"):
            next(batches)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetched_batches_are_the_same_on_the_device(size):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with (
        closing(pipeline(images(), 8, seed=5, repeat=False)) as batches,
        closing(prefetch_to_device(pipeline(images(), 8, seed=5, repeat=False), size, sharding)) as on_device,
    ):
        expected, actual = list(batches), list(on_device)
        assert len(actual) == 3
        for batch, other in zip(expected, actual, strict=True):
            assert all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in jax.tree.leaves(other))
            assert_trees_equal(other, batch)
        with pytest.raises(StopIteration):
            next(on_device)


def test_the_state_of_a_prefetching_iterator_is_that_of_what_it_returned():
    with (
        closing(pipeline(images(), 8, seed=5)) as batches,
        closing(prefetch_to_device(pipeline(images(), 8, seed=5), 3)) as ahead,
    ):
        assert ahead.state() == batches.state()
        for _ in range(4):
            assert_trees_equal(next(ahead), next(batches))
            assert ahead.state() == batches.state()
        state, expected = ahead.state(), [next(batches) for _ in range(3)]
        next(ahead)
        ahead.restore(state)
        assert ahead.state() == state
        for batch in expected:
            assert_trees_equal(next(ahead), batch)
        ahead.close()
        assert ahead.state() == batches.state()
        assert_trees_equal(next(ahead), next(batches))  # closing loses nothing that was fetched


def test_pipelines_without_grain(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install lo-components\[data\]"):
        pipeline(images(), 8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_give_the_same_batches_and_states(num_workers):
    with (
        closing(pipeline(images(), 8, seed=5)) as batches,
        closing(pipeline(images(), 8, seed=5, num_workers=num_workers)) as workers,
    ):
        for _ in range(7):
            batch = next(workers)
            assert type(batch[0]) is np.ndarray
            assert_trees_equal(batch, next(batches))
            assert workers.state() == batches.state()
        next(workers)
        workers.restore(batches.state())
        assert_trees_equal(next(workers), next(batches))


@pytest.mark.slow
def test_workers_make_one_pass_and_pass_on_errors():
    with closing(pipeline(images(), 8, seed=5, repeat=False, num_workers=2)) as workers:
        assert sorted(sum((y.tolist() for _, y in workers), [])) == list(range(20))
    with closing(pipeline(Failing(), 4, seed=0, shuffle=False, num_workers=1)) as workers:
        np.testing.assert_array_equal(next(workers)["n"], [0, 1, 2, 3])
        with pytest.raises(OSError, match="example 7 cannot be read"):
            next(workers)


@pytest.mark.parametrize("source", [(np.ones(3), np.ones(3)), {"x": np.ones(3)}], ids=["tuple", "dictionary"])
def test_trees_of_whole_arrays_are_refused(source):
    with pytest.raises(TypeError, match="`source` must be a data set, an array or a sequence of examples, got a"):
        pipeline(source, 2, seed=0)


# Windows of batches, and the thread that reads ahead.


@pytest.mark.parametrize("ahead", [None, 1, 3])
def test_windows_are_consecutive_batches_with_the_position_after_them(ahead):
    def prefetched(iterator):
        return iterator if ahead is None else prefetch_to_device(iterator, ahead)

    with (
        closing(pipeline(images(), 8, seed=5)) as batches,
        closing(prefetched(windows(pipeline(images(), 8, seed=5), 3))) as stacked,
    ):
        assert stacked.state() == batches.state()
        for _ in range(3):
            expected = [next(batches) for _ in range(3)]
            assert_trees_equal(next(stacked), jax.tree.map(lambda *x: np.stack(x), *expected))
            assert stacked.state() == batches.state()
        position, following = stacked.state(), next(stacked)
        assert position["batches"] == 9
        stacked.restore(json.loads(json.dumps(position)))
        assert_trees_equal(next(stacked), following)
        stacked.close()
        assert stacked.state()["batches"] == 12
    with closing(pipeline(images(), 8, seed=5)) as other, pytest.raises(ValueError, match="from another pipeline"):
        prefetched(windows(pipeline(images(), 4, seed=5), 3)).restore(other.state())
    with pytest.raises(ValueError, match="`num_batches` must be at least 1, got 0"):
        windows(other, 0)


@pytest.mark.parametrize("ahead", [False, True])
def test_windows_end_with_the_last_whole_one(ahead):
    once = windows(pipeline(images(), 4, seed=5, repeat=False), 2)  # five batches
    with closing(prefetch_to_device(once) if ahead else once) as stacked:
        assert len(list(stacked)) == 2
        assert stacked.state()["batches"] == 4
        with pytest.raises(StopIteration):
            next(stacked)
    once = pipeline(images(), 8, seed=5, repeat=False)  # the last batch has four examples
    message = (
        r"`iterator` must have batches of equal shapes, .*`0` got float32\(4, 2, 2, 3\), expected float32\(8, 2, 2"
    )
    with closing(windows(once, 3)) as stacked, pytest.raises(ValueError, match=message):
        next(stacked)


class Recovering(Squares):
    """One read fails."""

    failures = 1

    def __getitem__(self, index):
        if index == 7 and self.failures:
            self.failures -= 1
            raise OSError("example 7 cannot be read now")
        return super().__getitem__(index)


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_error_of_the_reader_reaches_the_caller_and_loses_no_batch():
    with closing(prefetch_to_device(windows(pipeline(Recovering(), 2, seed=0, shuffle=False), 2))) as ahead:
        np.testing.assert_array_equal(next(ahead)["n"], [[0, 1], [2, 3]])
        with pytest.raises(OSError, match="example 7 cannot be read now"):
            next(ahead)
        assert not reader_threads() and ahead.state()["batches"] == 2
        np.testing.assert_array_equal(next(ahead)["n"], [[4, 5], [6, 7]])
        assert len(reader_threads()) == 1
    assert not reader_threads()


def test_reading_goes_on_while_the_caller_computes():
    read, both = [], threading.Event()

    class Noticed(Squares):
        def __getitem__(self, index):
            read.append(threading.current_thread())
            if len(read) == 20:
                both.set()
            return super().__getitem__(index)

    with closing(prefetch_to_device(pipeline(Noticed(), 10, seed=0, read_ahead=1), 1)) as ahead:
        next(ahead)
        assert both.wait(60)  # the second batch, which nobody has asked for
    assert threading.main_thread() not in read


def test_batches_go_to_the_default_device_of_the_caller():
    found = []

    class Asking(Squares):
        def __next__(self):
            found.append(jax.config.jax_default_device)
            return np.zeros(2)

        def state(self):
            return {}

        def restore(self, state):
            pass

    AbstractBatchIterator.register(Asking)
    with jax.default_device(jax.devices()[0]):
        ahead = prefetch_to_device(Asking(), 1)
    assert not next(ahead).committed
    next(ahead)
    assert set(found) == {jax.devices()[0]}


@pytest.mark.parametrize("end", ["", "raise RuntimeError('boom')", "del ahead"])
def test_a_program_ends_while_batches_are_read(end):
    """A thread that transfers a batch while Python exits would crash, or keep the program from ending."""
    code = f"""
import time
import numpy as np
from lo_components import data

class Slow:
    def __len__(self): return 1000
    def __getitem__(self, index):
        time.sleep(0.01)
        return np.zeros(10**5, np.float32)

ahead = data.prefetch_to_device(data.windows(data.pipeline(Slow(), 2, seed=0), 2), 3)
next(ahead)
{end}
"""
    done = run_python(code)
    errors = [line for line in done.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    assert (done.returncode, errors) == ((1, ["RuntimeError: boom"]) if "boom" in end else (0, []))
