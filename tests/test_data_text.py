"""Tokenizers, packing, text files and the cache of encoded text."""

import io
import json
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components.data import (
    AbstractTokenizer,
    ByteTokenizer,
    Tokenizer,
    lm1b,
    load_tokenizer,
    python_docs,
    read_lines,
    sample_tokens,
    text_dataset,
    text_files,
    train_tokenizer,
)

WORDS = "the a of learned optimizer descends loss landscape gently quickly never always step size grows shrinks".split()


def sentences(count, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 8)) + "." for _ in range(count)]


class Letters(AbstractTokenizer):
    """A letter's place in the alphabet; 27 ends a document."""

    vocab_size = 28
    end_id = 27

    def __init__(self, name="letters"):
        self.name = name
        self.calls = 0

    @property
    def fingerprint(self):
        return self.name

    def encode(self, texts):
        self.calls += 1
        return [[ord(c) - ord("a") + 1 for c in text] for text in texts]

    def decode(self, ids):
        return "".join(chr(i + ord("a") - 1) for i in ids if i not in (0, self.end_id))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a small SentencePiece model."""
    pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("tokenizer") / "some" / "small.model"
    train_tokenizer(sentences(200), path, vocab_size=40)
    return path


def test_bytes_are_encoded_as_numbers_from_one():
    tokenizer = ByteTokenizer()
    texts = ["ab", "", "zürich 東京 \U0001f600"]
    ids = tokenizer.encode(texts)
    assert ids[:2] == [[98, 99], []]
    assert min(ids[2]) > 0 and max(ids[2]) <= 256 == tokenizer.vocab_size - 1
    assert [tokenizer.decode(i) for i in ids] == texts
    assert tokenizer.decode([0, 98, 0, tokenizer.end_id, 99, 0]) == "a\nb"
    assert tokenizer.decode(np.array(ids[2][:2])) == "z\ufffd"


def test_packing_puts_documents_one_after_the_other():
    dataset = text_dataset({"train": ["abc", "", "de"], "test": "ab\n\n  \ncde\n"}, Letters(), length=3)
    np.testing.assert_array_equal(dataset.splits["train"], [[1, 2, 3], [27, 27, 4]])  # 5, 27 do not fill a sequence
    np.testing.assert_array_equal(dataset.splits["test"], [[1, 2, 27], [3, 4, 5]])
    assert (dataset.vocab_size, dataset.pad_id, dataset.length) == (28, 0, 3)
    assert dataset.splits["train"].dtype == jnp.int32


def test_packing_does_not_depend_on_how_documents_come_in():
    documents = ["".join(np.random.default_rng(i).choice(list("abcdef"), i % 7)) for i in range(9000)]
    tokenizer = Letters()
    dataset = text_dataset({"train": (d for d in documents)}, tokenizer, length=11)
    stream = np.array([i for ids in Letters().encode(documents) for i in (*ids, 27)])
    np.testing.assert_array_equal(dataset.splits["train"].ravel(), stream[: len(stream) // 11 * 11])
    assert tokenizer.calls == 3  # some thousand at a time


def test_text_that_is_too_little_or_tokens_out_of_range_are_refused():
    with pytest.raises(ValueError, match="split 'test' has 3 tokens, too few for one sequence of 4"):
        text_dataset({"train": ["abcdef"], "test": ["ab"]}, Letters(), length=4)
    with pytest.raises(ValueError, match="split 'train' has 0 tokens"):
        text_dataset({"train": []}, Letters())
    with pytest.raises(ValueError, match=r"no split called 'train' \(found: test\)"):
        text_dataset({"test": ["abcdef"]}, Letters())
    with pytest.raises(ValueError, match="`length` must be at least 2, got 1"):
        text_dataset({"train": ["abcdef"]}, Letters(), length=1)
    for letter in ("`", "|"):  # ids 0 and 28
        with pytest.raises(ValueError, match="ids that are not from 1 to 27"):
            text_dataset({"train": ["abc" + letter]}, Letters(), length=2)


def test_sampled_sequences_are_rows_of_the_split_asked_for():
    dataset = text_dataset({"train": ["abcdefghijklmnop"], "test": ["qrstuv"]}, Letters(), length=2)
    first, again = (sample_tokens(dataset, 60, key=jax.random.key(0)) for _ in range(2))
    assert first.shape == (60, 2) and first.dtype == jnp.int32
    np.testing.assert_array_equal(first, again)
    assert {tuple(row) for row in first.tolist()} == {tuple(row) for row in dataset.splits["train"].tolist()}
    test = sample_tokens(dataset, 60, split="test", key=jax.random.key(0))
    assert {tuple(row) for row in test.tolist()} == {(17, 18), (19, 20), (21, 22)}
    jitted = jax.jit(lambda dataset, key: sample_tokens(dataset, 60, key=key))(dataset, jax.random.key(0))
    np.testing.assert_array_equal(jitted, first)
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\], got 'valid'"):
        sample_tokens(dataset, 2, split="valid", key=jax.random.key(0))


def test_the_documentation_of_python_is_text_without_files():
    dataset = python_docs()
    assert dataset.vocab_size == 257 and dataset.length == 64
    tokens = {name: np.asarray(split) for name, split in dataset.splits.items()}
    assert all((split > 0).all() and (split < 257).all() for split in tokens.values())
    assert 10 < len(tokens["train"]) / len(tokens["test"]) < 30 and len(tokens["train"]) > 4000
    text = ByteTokenizer().decode(tokens["train"].ravel())
    assert text.startswith('The "assert" statement\n') and "\n\n" not in text
    np.testing.assert_array_equal(python_docs(length=32).splits["train"].ravel()[:640], tokens["train"].ravel()[:640])


def test_a_trained_tokenizer_keeps_zero_for_padding(model):
    tokenizer = load_tokenizer(model)
    texts = [*sentences(50, seed=1), "", "words it has never seen: 東京 <pad> </s> <unk>"]
    ids = tokenizer.encode(texts)
    assert tokenizer.vocab_size == 40 and tokenizer.end_id == 2
    assert min(min(i) for i in ids if i) > 0 and max(max(i) for i in ids if i) < 40
    assert [tokenizer.decode(i) for i in ids[:51]] == texts[:51]
    assert 1 in ids[-1] and tokenizer.end_id not in ids[-1]
    assert sum(map(len, ids[:50])) < sum(map(len, texts[:50])) / 2
    joined = [*ids[0], tokenizer.end_id, *ids[1], 0, 0]
    assert tokenizer.decode(np.array(joined)) == f"{texts[0]}\n{texts[1]}"


def test_the_same_text_gives_the_same_tokenizer(model, tmp_path):
    again = train_tokenizer(iter(sentences(200)), tmp_path / "again.model", vocab_size=40)
    assert again.fingerprint == load_tokenizer(model).fingerprint
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()
    other = train_tokenizer(sentences(200), tmp_path / "again.model", vocab_size=35)
    assert other.fingerprint != again.fingerprint
    assert load_tokenizer(tmp_path / "again.model").fingerprint == other.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


def test_training_lowers_the_vocabulary_for_little_text_and_says_so(tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.warns(UserWarning, match=r"supports a vocabulary of only \d+, not 32000"):
        tokenizer = train_tokenizer(["\n".join(sentences(20))], tmp_path / "x.model")
    assert 30 < tokenizer.vocab_size < 1000
    with pytest.warns(
        UserWarning, match=r"only \d+, not 32000"
    ):  # a line longer than the trainer takes is cut, not left out
        assert train_tokenizer(["ab cd " * 50_000], tmp_path / "x.model").vocab_size > 6


def test_training_on_no_text_or_for_too_few_ids_is_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match="There is no text"):
        train_tokenizer(["", " \n\n"], tmp_path / "x.model")
    with pytest.raises(ValueError, match="A vocabulary of 5 cannot be trained"):
        train_tokenizer(sentences(20), tmp_path / "x.model", vocab_size=5)
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_ids_is_shifted(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    path, prefix = tmp_path / "default.model", tmp_path / "default"
    (tmp_path / "text").write_text("\n".join(sentences(100)))
    spm.SentencePieceTrainer.train(input=tmp_path / "text", model_prefix=prefix, vocab_size=40, minloglevel=2)
    tokenizer, plain = load_tokenizer(path), spm.SentencePieceProcessor(model_file=str(path))
    assert plain.pad_id() == -1 and plain.unk_id() == 0  # the trainer's defaults
    texts = ["a learned optimizer.", "東"]
    assert tokenizer.encode(texts) == [[i + 1 for i in ids] for ids in plain.encode(texts)]
    assert (tokenizer.vocab_size, tokenizer.end_id) == (41, plain.eos_id() + 1)
    assert tokenizer.decode(tokenizer.encode(texts)[0]) == texts[0]
    spm.SentencePieceTrainer.train(
        input=tmp_path / "text", model_prefix=prefix, vocab_size=40, eos_id=-1, minloglevel=2
    )
    with pytest.raises(ValueError, match="no end-of-sentence piece"):
        load_tokenizer(path)


def test_a_file_that_is_no_model_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    path = tmp_path / "bad.model"
    for content in (b"", b"not a model", model.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"`{path}`: Th"):
            load_tokenizer(path)


def test_tokenizers_without_sentencepiece(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"pip install lo-components\[data\]"):
        Tokenizer(b"x")
    with pytest.raises(ImportError, match=r"pip install lo-components\[data\]"):
        train_tokenizer(["x"], tmp_path / "x.model")


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_of_files(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  two  \n \nthree \u2028 x".encode())
    (tmp_path / "b.txt").write_text("four\n")
    expected = ["one", "  two", "three \u2028 x", "four"]
    assert list(read_lines(tmp_path)) == expected
    assert list(read_lines([tmp_path / "a.txt", str(tmp_path / "b.txt")])) == expected
    assert list(read_lines(tmp_path / "b.txt")) == ["four"]


def test_text_files_hold_out_the_last_twentieth_of_the_lines(tmp_path):
    letters = [chr(ord("a") + i % 26) for i in range(45)]
    write(tmp_path / "a.txt", letters[:20])
    write(tmp_path / "b.txt", letters[20:])
    expected = np.array([[i % 26 + 1, 27] for i in range(45)])
    for paths in (tmp_path, [tmp_path / "a.txt", tmp_path / "b.txt"]):
        dataset = text_files(paths, Letters(), length=2)
        np.testing.assert_array_equal(dataset.splits["train"], expected[:43])
        np.testing.assert_array_equal(dataset.splits["test"], expected[43:])
    dataset = text_files({"train": tmp_path / "a.txt", "valid": [tmp_path / "b.txt"]}, Letters(), length=2)
    np.testing.assert_array_equal(dataset.splits["train"], expected[:20])
    np.testing.assert_array_equal(dataset.splits["valid"], expected[20:])


def test_files_that_are_missing_or_no_text_are_named(tmp_path):
    for paths in (tmp_path / "no.txt", [tmp_path / "no.txt"], {"train": str(tmp_path / "no.txt")}):
        with pytest.raises(FileNotFoundError, match=f"There is no file `{tmp_path}/no.txt`"):
            text_files(paths, Letters())
    with pytest.raises(FileNotFoundError, match=rf"`{tmp_path}` has no `\*.txt` files"):
        text_files(tmp_path, Letters())
    with pytest.raises(FileNotFoundError, match="No text files were given"):
        text_files([], Letters())
    path = tmp_path / "odd.txt"
    for content in ("ok\nzürich".encode("latin-1"), "ab\ncd".encode("utf-16"), b"ok\n" + b"\xff", b"ok\n\xe6\x9d"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"`{path}` is not UTF-8 text: line [12]"):
            text_files(path, ByteTokenizer())
    path.write_bytes(b"ok\na\0b\n")
    with pytest.raises(ValueError, match=f"`{path}` is not UTF-8 text: line 2 has a zero byte"):
        list(read_lines(path))
    path.write_text("ab\ncd\n")
    with pytest.raises(ValueError, match=f"`{path}`: split 'train' has 3 tokens, too few"):
        text_files(path, Letters())


def test_lm1b_in_the_published_layout(tmp_path):
    place = tmp_path / "1-billion-word-language-modeling-benchmark-r13output"
    for i, letter in ((1, "a"), (2, "b")):
        write(place / "training-monolingual.tokenized.shuffled" / f"news.en-0000{i}-of-00100", [letter] * 3)
    heldout = place / "heldout-monolingual.tokenized.shuffled"
    for i in range(25):
        write(heldout / f"news.en.heldout-000{i:02}-of-00050", [chr(ord("c") + i % 20)])
    write(heldout / "README", ["not a shard"])
    dataset = lm1b(tmp_path, Letters(), length=2)
    np.testing.assert_array_equal(dataset.splits["train"][:, 0], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(dataset.splits["test"][:, 0], [3 + i % 20 for i in range(25)])
    np.testing.assert_array_equal(lm1b(place, Letters(), length=2).splits["test"], dataset.splits["test"])
    alone = lm1b(heldout, Letters(), length=2)  # one of 25 shards is a twentieth
    np.testing.assert_array_equal(alone.splits["train"], dataset.splits["test"][:24])
    np.testing.assert_array_equal(alone.splits["test"], dataset.splits["test"][24:])


def test_lm1b_without_shards_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder `.*nowhere`"):
        lm1b(tmp_path / "nowhere", Letters())
    path = write(tmp_path / "news.en-00001-of-00100", ["ab"])
    with pytest.raises(FileNotFoundError, match=f"`{tmp_path}` has fewer than two shards"):
        lm1b(tmp_path, Letters())
    (tmp_path / "news.en-00002-of-00100").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"`{tmp_path}/news.en-00002-of-00100` is not UTF-8 text"):
        lm1b(tmp_path, Letters(), length=2)
    assert path.exists()


def cached_letters(tmp_path, tokenizer, length=2):
    return text_files(tmp_path / "text.txt", tokenizer, length=length, cache=tmp_path / "cache")


def test_a_cache_saves_the_encoding(tmp_path):
    write(tmp_path / "text.txt", ["ab", "cd", "e"])
    first, second = Letters(), Letters()
    written = cached_letters(tmp_path, first)
    read = cached_letters(tmp_path, second)
    assert first.calls == 2 and second.calls == 0
    assert set(read.splits) == {"train", "test"} and read.vocab_size == 28
    for split in read.splits:
        np.testing.assert_array_equal(read.splits[split], written.splits[split])
        assert read.splits[split].dtype == jnp.int32
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lo-components-tokens.npz"]


def change_source(folder, **changes):
    path = folder / "cache" / "lo-components-tokens.npz"
    with np.load(path) as arrays:
        index, *tokens = arrays.values()
    content = json.loads(str(index))
    content["source"].update(changes)
    np.savez(path, np.array(json.dumps(content)), *tokens)


def write_cache(content):
    def write_content(folder):
        path = folder / "cache" / "lo-components-tokens.npz"
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return write_content


def npz(*arrays):
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


ROWS = np.ones((3, 2), np.int32)
CHANGES = {
    "text": (lambda folder: write(folder / "text.txt", ["ab", "cd", "f"]), "was written for other `files`"),
    "name of the file": (lambda folder: change_source(folder, files={}), "was written for other `files`"),
    "format": (lambda folder: change_source(folder, format=0), "was written for other `format`"),
    "no tokens": (write_cache(npz(np.array('{"source": {}, "splits": ["train"]}'))), "arr_1"),
    "no index": (write_cache(npz()), "arr_0"),
    "index cut short": (write_cache(npz(np.array('{"source": {'), ROWS)), "not an intact cache"),
    "index of nothing": (write_cache(npz(np.array("[]"), ROWS)), "not an intact cache"),
    "index of something else": (write_cache(npz(np.array('{"a": 1}'), ROWS)), "source"),
    "index of odd types": (write_cache(npz(np.array('{"source": 3, "splits": 4}'), ROWS)), "not an intact cache"),
    "index that is no text": (write_cache(npz(ROWS, ROWS)), "not an intact cache"),
    "empty": (write_cache(b""), "not an intact cache"),
    "not a zip file": (write_cache(b"text"), "not an intact cache"),
    "cut short": (write_cache(lambda whole: whole[:-100]), "not an intact cache"),
    "half": (write_cache(lambda whole: whole[: len(whole) // 2]), "not an intact cache"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_stale_or_damaged_cache_is_rebuilt(tmp_path, case):
    write(tmp_path / "text.txt", ["ab", "cd", "e"])
    cached_letters(tmp_path, Letters())
    change, message = CHANGES[case]
    change(tmp_path)
    expected = text_files(tmp_path / "text.txt", Letters(), length=2)
    with pytest.warns(UserWarning, match=f"The cache is rebuilt: `{re.escape(str(tmp_path))}/cache/.*{message}"):
        rebuilt = cached_letters(tmp_path, Letters())
    tokenizer = Letters()
    for dataset in (rebuilt, cached_letters(tmp_path, tokenizer)):
        for split in ("train", "test"):
            np.testing.assert_array_equal(dataset.splits[split], expected.splits[split])
    assert tokenizer.calls == 0


def test_a_cache_for_another_tokenizer_or_length_is_rebuilt(tmp_path):
    write(tmp_path / "text.txt", ["ab", "cd", "ef"])
    cached_letters(tmp_path, Letters())
    with pytest.warns(UserWarning, match="was written for other `tokenizer`"):
        cached_letters(tmp_path, Letters("other letters"))
    with pytest.warns(UserWarning, match="was written for other `length`"):
        assert cached_letters(tmp_path, Letters("other letters"), length=3).length == 3


def test_no_flipped_byte_of_a_cache_changes_tokens_unnoticed(tmp_path):
    write(tmp_path / "text.txt", ["ab", "cd", "e"])
    cached_letters(tmp_path, Letters())
    path = tmp_path / "cache" / "lo-components-tokens.npz"
    whole, rebuilt = path.read_bytes(), 0
    expected = text_files(tmp_path / "text.txt", Letters(), length=2)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :])
        tokenizer = Letters()
        with warnings.catch_warnings(action="ignore"):
            dataset = cached_letters(tmp_path, tokenizer)
        assert list(dataset.splits) == list(expected.splits)
        for split in expected.splits:
            np.testing.assert_array_equal(dataset.splits[split], expected.splits[split])
        rebuilt += tokenizer.calls
    assert rebuilt > len(whole) / 2  # the rest is dates and other attributes of the archive's members


def test_a_cache_whose_writing_failed_is_not_used(tmp_path, monkeypatch):
    write(tmp_path / "text.txt", ["ab", "cd", "e"])

    def full_disk(file, *arrays):
        file.write(b"the first bytes")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="the disk is full"):
        cached_letters(tmp_path, Letters())
    monkeypatch.undo()
    assert list((tmp_path / "cache").iterdir()) == []
    tokenizer = Letters()
    cached_letters(tmp_path, tokenizer)  # without a warning: there was no cache
    assert tokenizer.calls == 2
