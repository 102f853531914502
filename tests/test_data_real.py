"""The readers on published files, where there are some."""

import os
from pathlib import Path

import numpy as np
import pytest

from lo_components.data import cifar10, lm1b, load_tokenizer, text_files


def real(name):
    """A published file or folder: in `$LO_COMPONENTS_DATA`, else in `shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LO_COMPONENTS_DATA", beside)) / name


def needs(*names):
    missing = [name for name in names if not real(name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"set LO_COMPONENTS_DATA to a folder that holds {missing}")


CIFAR = "cifar10/cifar-10-python-subset.tar.xz"
LABELS = "cifar10/labels_all_60000.npz"
MODEL = "sentencepiece/test_model.model"


@needs(CIFAR, LABELS)
def test_the_first_images_of_the_real_cifar10():
    dataset = cifar10(real(CIFAR).parent)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert train.images.shape == (8068, 32, 32, 3) and test.images.shape == (1017, 32, 32, 3)
    with np.load(real(LABELS)) as labels:
        counts = {f"data_batch_{i}": 4000 if i == 1 else 1017 for i in range(1, 6)}
        expected = np.concatenate([labels[name][:count] for name, count in counts.items()])
        np.testing.assert_array_equal(train.labels, expected)
        np.testing.assert_array_equal(test.labels, labels["test_batch"][:1017])
    # The statistics of all 50,000 images; the error of a mean over 8,068 of them is below 0.003.
    np.testing.assert_allclose(np.array(dataset.mean) / 255, [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(np.array(dataset.std) / 255, [0.2470, 0.2435, 0.2616], atol=0.01)
    # Neighbouring pixels are alike, which they are not if channels, rows and columns are mixed up.
    pixels = np.asarray(train.images[:500], np.float32)
    for axis in (1, 2):
        assert np.abs(np.diff(pixels, axis=axis)).mean() < 0.35 * pixels.std()


@needs("lm1b", MODEL)
def test_the_real_lm1b_shards(tmp_path):
    pytest.importorskip("sentencepiece")
    tokenizer = load_tokenizer(real(MODEL))
    dataset = lm1b(real("lm1b"), tokenizer, cache=tmp_path / "cache")
    assert dataset.vocab_size == tokenizer.vocab_size == 1001
    train, test = (np.asarray(dataset.splits[name]) for name in ("train", "test"))
    assert 2.5 < len(train) / len(test) < 3.5  # three shards and one
    assert train.min() > 0 and train.max() <= 1000
    sentences = np.sum(train == tokenizer.end_id) + np.sum(test == tokenizer.end_id)
    assert 24_321 - 2 * 64 < sentences <= 24_321  # all but those of the two tails
    np.testing.assert_array_equal(lm1b(real("lm1b"), tokenizer, cache=tmp_path / "cache").splits["train"], train)


@needs("wikitext-2/valid.txt", "wikitext-2/test.txt", "tinyshakespeare/input.txt", MODEL)
def test_real_text_files():
    pytest.importorskip("sentencepiece")
    tokenizer = load_tokenizer(real(MODEL))
    files = {"train": real("wikitext-2/valid.txt"), "test": real("wikitext-2/test.txt")}
    dataset = text_files(files, tokenizer)
    assert all(len(split) > 1000 for split in dataset.splits.values())
    plays = text_files(real("tinyshakespeare"), tokenizer)
    assert tokenizer.decode(plays.splits["train"][0]).startswith("First Citizen:\nBefore we proceed any further")
    assert 15 < len(plays.splits["train"]) / len(plays.splits["test"]) < 25
