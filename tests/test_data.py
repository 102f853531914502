import gzip
import os
import struct
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meta_helpers import toy_images

from lo_components.data import (
    digits,
    dirichlet_shards,
    fashion_mnist,
    image_dataset,
    read_idx,
    sample_batch,
    split_off,
    take_batch,
)

NAMES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}


def idx_bytes(array):
    """`array` as an idx file of unsigned bytes."""
    return struct.pack(f">2x2B{array.ndim}I", 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def values(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def write_fashion_mnist(folder, *, train=12, test=5, zipped=True):
    folder.mkdir(exist_ok=True)
    for name, ndim in NAMES.items():
        count = train if name.startswith("train") else test
        array = values(count, 4, 3) if ndim == 3 else values(count) % 10
        data = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (0, 4, 5)])
def test_read_idx_returns_what_was_written(tmp_path, shape, zipped):
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(idx_bytes(values(*shape))) if zipped else idx_bytes(values(*shape)))
    array = read_idx(path, ndim=len(shape))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, values(*shape))
    np.testing.assert_array_equal(read_idx(str(path), ndim=len(shape)), array)


GOOD = idx_bytes(values(3, 4, 5))
BAD = {
    "empty": (b"", "not an idx file"),
    "header cut short": (GOOD[:10], "not an idx file"),
    "wrong magic": (b"\1" + GOOD[1:], "not an idx file"),
    "signed integers": (GOOD[:2] + b"\x0c" + GOOD[3:], "not an idx file"),
    "two axes": (idx_bytes(values(3, 4)) + bytes(20), "not an idx file"),
    "values cut short": (GOOD[:-1], r"should contain 60 values of shape \(3, 4, 5\), but contains 59"),
    "too long": (GOOD + b"\0", r"should contain 60 values of shape \(3, 4, 5\), but contains more"),
    "absurd shape": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "it is not unpacked"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_malformed_idx_file_is_named(tmp_path, case, zipped):
    data, message = BAD[case]
    path = tmp_path / ("odd.gz" if zipped else "odd")
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(ValueError, match=f"`{path}` .*{message}"):
        read_idx(path, ndim=3)


@pytest.mark.parametrize("length", [1, 5, 15, 30, -9, -4, -1])
def test_a_gzip_file_cut_short_anywhere_is_named(tmp_path, length):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(GOOD)[:length])
    with pytest.raises(ValueError, match=f"`{path}` is not a"):
        read_idx(path, ndim=3)


def test_no_flipped_byte_of_a_gzip_file_changes_its_values_unnoticed(tmp_path):
    path, whole = tmp_path / "flipped.gz", gzip.compress(GOOD, mtime=0)
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            np.testing.assert_array_equal(read_idx(path, ndim=3), values(3, 4, 5))
        except ValueError as error:
            assert f"`{path}`" in str(error)
            refused += 1
    assert refused > len(whole) - 10  # the header holds a time stamp and a name for the operating system


def test_a_raw_file_called_gz_is_not_a_gzip_file(tmp_path):
    path = tmp_path / "raw.gz"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=f"`{path}` is not a complete gzip file"):
        read_idx(path, ndim=3)


def test_a_missing_idx_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.gz"):
        read_idx(tmp_path / "nothing.gz", ndim=3)


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_reads_four_files(tmp_path, zipped):
    dataset = fashion_mnist(write_fashion_mnist(tmp_path, zipped=zipped))
    assert dataset.num_classes == 10 and dataset.image_shape == (4, 3)
    assert dataset.splits["train"].images.dtype == jnp.uint8
    np.testing.assert_array_equal(dataset.splits["train"].images, values(12, 4, 3))
    np.testing.assert_array_equal(dataset.splits["test"].images, values(5, 4, 3))
    np.testing.assert_array_equal(dataset.splits["train"].labels, values(12) % 10)
    np.testing.assert_array_equal(dataset.splits["test"].labels, values(5) % 10)


def test_fashion_mnist_without_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder `.*nowhere`"):
        fashion_mnist(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="There is no folder `.*file`"):
        fashion_mnist(tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
def test_fashion_mnist_names_a_missing_file(tmp_path, name):
    (write_fashion_mnist(tmp_path) / f"{name}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"`{tmp_path}` has neither `{name}.gz` nor `{name}`"):
        fashion_mnist(tmp_path)


def test_fashion_mnist_with_images_and_labels_of_different_sets(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values(11) % 10)))
    with pytest.raises(ValueError, match="split 'train' has 12 images but 11 labels"):
        fashion_mnist(tmp_path)


def real_fashion_mnist():
    """The folder with Fashion-MNIST's files: in `$LO_COMPONENTS_DATA`, else in `shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LO_COMPONENTS_DATA", beside)) / "fashion_mnist"


@pytest.mark.skipif(
    not real_fashion_mnist().is_dir(),
    reason="no Fashion-MNIST: set LO_COMPONENTS_DATA to a folder that holds `fashion_mnist` with its four idx files",
)
def test_the_real_fashion_mnist():
    dataset = fashion_mnist(real_fashion_mnist())
    assert {name: split.images.shape for name, split in dataset.splits.items()} == {
        "train": (60_000, 28, 28),
        "test": (10_000, 28, 28),
    }
    for split, each in (("train", 6000), ("test", 1000)):
        np.testing.assert_array_equal(np.bincount(dataset.splits[split].labels), np.full(10, each))
    # The published statistics of the training set.
    np.testing.assert_allclose([dataset.mean / 255, dataset.std / 255], [0.2860, 0.3530], atol=5e-5)


def arrays(count=6):
    return values(count, 2, 2), np.arange(count) % 3


def broken(*, images=None, labels=None, split="train"):
    """Splits of which one is altered."""
    splits = {"train": arrays(), "test": arrays(4)}
    good = splits[split]
    splits[split] = (good[0] if images is None else images, good[1] if labels is None else labels)
    return splits


NAN = np.full((6, 2, 2), np.nan)
CASES = {
    "no train": ({"test": arrays()}, r"no split called 'train' \(found: test\)"),
    "nothing": ({}, r"\(found: none\)"),
    "counts": (broken(labels=np.zeros(5, int)), "split 'train' has 6 images but 5 labels"),
    "counts of test": (broken(labels=np.zeros(5, int), split="test"), "split 'test' has 4 images but 5 labels"),
    "label too large": (broken(labels=np.full(6, 3)), "labels from 3 to 3; expected 0 to 2"),
    "negative label": (broken(labels=np.arange(6) % 3 - 1), "labels from -1 to 1; expected 0 to 2"),
    "fractional labels": (broken(labels=np.full(6, 0.5)), "dtype float64 and shape .*expected a vector of integers"),
    "one-hot labels": (broken(labels=np.eye(6, dtype=int)), r"shape \(6, 6\); expected a vector of integers"),
    "NaN": (broken(images=NAN), "split 'train' has pixels that are NaN or infinite"),
    "infinite": (broken(images=NAN[:4] - np.inf, split="test"), "split 'test' has pixels that are NaN or infinite"),
    "empty": (broken(images=values(0, 2, 2), labels=np.zeros(0, int)), "split 'train' is empty"),
    "other shape": (broken(images=values(4, 3, 3), split="test"), r"images of shape \(3, 3\), unlike 'train'"),
    "constant": (broken(images=np.full((6, 2, 2), 7, np.uint8)), "all training pixels are equal"),
    "constant, inexact": (broken(images=np.full((6, 2, 2), 0.1)), "all training pixels are equal"),
}


@pytest.mark.parametrize("case", CASES)
def test_arrays_that_are_no_data_set_are_refused_by_name(case):
    splits, message = CASES[case]
    with pytest.raises(ValueError, match=f"^my data: .*{message}"):
        image_dataset(splits, num_classes=3, name="my data")


def test_images_keep_bytes_and_turn_other_numbers_to_float32():
    for dtype, expected in ((np.uint8, jnp.uint8), (np.float64, jnp.float32), (np.int64, jnp.float32)):
        images, labels = arrays()
        dataset = image_dataset({"train": (images.astype(dtype), labels)}, num_classes=3, name="x")
        assert dataset.splits["train"].images.dtype == expected
        assert dataset.splits["train"].labels.dtype == jnp.int32
        np.testing.assert_allclose([dataset.mean, dataset.std], [images.mean(), images.std()], rtol=1e-6)


def test_digits():
    dataset = digits()
    assert dataset.num_classes == 10 and dataset.image_shape == (8, 8)
    assert dataset.splits["train"].images.shape == (1500, 8, 8) and dataset.splits["test"].images.shape == (297, 8, 8)
    counts = sum(np.bincount(split.labels, minlength=10) for split in dataset.splits.values())
    np.testing.assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert all(np.bincount(split.labels, minlength=10).min() > 15 for split in dataset.splits.values())
    assert dataset.splits["train"].images.max() == 16
    np.testing.assert_array_equal(digits().splits["train"].images, dataset.splits["train"].images)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install lo-components\[data\]"):
        digits()


def test_batches_are_normalized_examples_with_their_labels():
    dataset = toy_images(scale=40.0)
    images, labels = sample_batch(dataset, 200, key=jax.random.key(0))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((200, 2), jnp.float32, (200,), jnp.int32)
    train = dataset.splits["train"]
    table = (np.asarray(train.images, np.float64) - dataset.mean) / dataset.std
    distance = np.abs(np.asarray(images)[:, None] - table[None]).max(axis=2)
    index = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-5
    np.testing.assert_array_equal(labels, np.asarray(train.labels)[index])
    assert set(index) == set(range(24))
    np.testing.assert_allclose([table.mean(), table.std()], [0, 1], atol=1e-6)


def test_a_large_batch_has_mean_zero_and_standard_deviation_one():
    images, _ = sample_batch(digits(), 20_000, key=jax.random.key(0))
    # Pixels of one image are correlated: the error of the mean is that of 20,000 image means.
    assert abs(np.mean(images)) < 4 * np.std(np.mean(images, axis=(1, 2))) / np.sqrt(20_000)
    assert abs(np.std(images) - 1) < 0.01


def test_batches_of_bytes_are_exact():
    images, labels = arrays()
    dataset = image_dataset({"train": (images, labels)}, num_classes=3, name="x")
    batch, _ = sample_batch(dataset, 50, key=jax.random.key(3))
    pixels = np.asarray(batch * dataset.std + dataset.mean)
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)
    assert {tuple(p.astype(int).ravel()) for p in np.round(pixels)} == {tuple(i.ravel()) for i in images.astype(int)}


def test_batches_come_from_the_split_asked_for():
    dataset = toy_images()
    images, _ = sample_batch(dataset, 50, split="test", key=jax.random.key(0))
    test = (np.asarray(dataset.splits["test"].images) - dataset.mean) / dataset.std
    assert np.abs(np.asarray(images)[:, None] - test[None]).max(axis=2).min(axis=1).max() < 1e-5
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\], got 'valid'"):
        sample_batch(dataset, 50, split="valid", key=jax.random.key(0))


def test_examples_are_taken_from_their_places():
    dataset = toy_images()
    for split in ("train", "test"):
        examples = dataset.splits[split]
        index = np.array([2, 0, 2, len(examples.labels) - 1, 10**6])
        images, labels = take_batch(dataset, jnp.asarray(index), split=split)
        index[-1] = index[-2]
        expected = (np.asarray(examples.images) - dataset.mean) / dataset.std
        np.testing.assert_allclose(images, expected[index], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(labels, np.asarray(examples.labels)[index])


def test_a_batch_is_a_function_of_the_key_also_under_jit():
    dataset = toy_images()
    first, again, other = (sample_batch(dataset, 32, key=jax.random.key(key)) for key in (0, 0, 1))
    jitted = jax.jit(lambda dataset, key: sample_batch(dataset, 32, key=key))(dataset, jax.random.key(0))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_allclose(jitted[0], first[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(jitted[1], first[1])
    assert np.any(np.asarray(first[1]) != np.asarray(other[1]))


def partitioned(concentration, **options):
    return dirichlet_shards(digits(), 4, concentration=concentration, **options)


def test_each_training_example_belongs_to_one_worker():
    dataset = partitioned(0.5)
    shards = dataset.shards
    assert sorted(np.asarray(shards.index)) == list(range(len(dataset.splits["train"].labels)))
    np.testing.assert_array_equal(shards.start, np.concatenate([[0], np.cumsum(shards.count)[:-1]]))
    assert shards.count.sum() == len(shards.index) and shards.count.min() >= 10
    np.testing.assert_array_equal(partitioned(0.5).shards.index, shards.index)
    assert not np.array_equal(partitioned(0.5, seed=1).shards.index, shards.index)


def test_a_workers_batches_come_only_from_its_shard():
    dataset = partitioned(0.5)
    labels = np.asarray(dataset.splits["train"].labels)
    sample = eqx.filter_jit(
        lambda worker, split: sample_batch(dataset, 4000, split=split, worker=worker, key=jax.random.key(0))[1]
    )
    for worker in range(4):
        start, count = int(dataset.shards.start[worker]), int(dataset.shards.count[worker])
        own = labels[np.asarray(dataset.shards.index)[start : start + count]]
        fraction = np.bincount(sample(jnp.asarray(worker), "train"), minlength=10) / 4000
        # Five standard errors of a fraction of 4,000 samples.
        np.testing.assert_allclose(fraction, np.bincount(own, minlength=10) / count, atol=5 * np.sqrt(0.25 / 4000))
    np.testing.assert_array_equal(sample(jnp.asarray(5), "train"), sample(jnp.asarray(1), "train"))
    everyone = sample_batch(dataset, 4000, split="test", key=jax.random.key(0))[1]
    np.testing.assert_array_equal(sample(jnp.asarray(0), "test"), everyone)


def test_class_proportions_have_the_variance_of_a_dirichlet_distribution():
    """A proportion of Dirichlet(a, ..., a) over K workers has variance (K - 1) / (K^2 (K a + 1))."""
    for concentration in (0.3, 30.0):
        proportions = []
        for seed in range(20):
            dataset = partitioned(concentration, seed=seed, min_size=1)
            labels = np.asarray(dataset.splits["train"].labels)[np.asarray(dataset.shards.index)]
            parts = np.split(labels, np.asarray(dataset.shards.start)[1:])
            proportions += [np.bincount(part, minlength=10) / np.bincount(labels, minlength=10) for part in parts]
        expected = 3 / 16 / (4 * concentration + 1)
        # 800 proportions; the four of one class are dependent.
        np.testing.assert_allclose(np.var(proportions), expected, rtol=0.25)


def test_shards_that_cannot_be_are_refused():
    for options, message in (
        (dict(concentration=0.0), "`concentration` must be positive and below a million, got 0.0"),
        (dict(concentration=1.0, min_size=0), "`min_size` must be at least 1, got 0"),
        (
            dict(concentration=1.0, min_size=400),
            "None of 100 partitions of 1500 examples gave each of 4 workers `min_size` = 400",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            partitioned(**options)
    with pytest.raises(ValueError, match="call `split_off` before `dirichlet_shards`"):
        split_off(partitioned(1.0), {"inner_valid": 0.1})
