from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from .._types import typechecked
from ._cache import cached
from ._files import existing_folder, sha256
from ._tokenizer import AbstractTokenizer, ByteTokenizer
from ._tokens import TokenDataset, lines, pack, token_dataset

_ARCHIVE = "1-billion-word-language-modeling-benchmark-r13output"


@typechecked
def read_lines(paths: str | Path | Sequence[str | Path]) -> Iterator[str]:
    """The lines of text files, one file after the other, without their ends and without blank ones.

    **Arguments:**

    - `paths`: a file, a folder (its `*.txt` files, by name), or several files.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where there is none or it is not text in UTF-8.
    """
    return _lines(_files(paths))


@typechecked
def text_files(
    paths: str | Path | Sequence[str | Path] | dict[str, str | Path | Sequence[str | Path]],
    tokenizer: AbstractTokenizer,
    *,
    length: int = 64,
    cache: str | Path | None = None,
) -> TokenDataset:
    """Text files, each line a document, packed as by [`lo_components.data.text_dataset`][].

    **Arguments:**

    - `paths`: a file, a folder (its `*.txt` files, by name) or several files, of whose lines the last twentieth is the
        split `"test"`; or a dictionary of such, by split.
    - `tokenizer`: encodes the lines.
    - `length`: tokens in a sequence.
    - `cache`: a folder for the encoded text, one for each data set. It is made if there is none, and built again, with
        a warning, if files, tokenizer or length have changed or it is damaged.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where there is none, it is not text in UTF-8, or it
    holds too little.
    """
    if isinstance(paths, dict):
        files = {split: _files(some) for split, some in paths.items()}
        return _from_files(files, lambda: {s: _lines(some) for s, some in files.items()}, tokenizer, length, cache)
    files = {"all": _files(paths)}
    return _from_files(files, lambda: _hold_out(_lines(files["all"])), tokenizer, length, cache)


@typechecked
def lm1b(
    folder: str | Path, tokenizer: AbstractTokenizer, *, length: int = 64, cache: str | Path | None = None
) -> TokenDataset:
    """The One Billion Word Benchmark: shuffled sentences of news, packed as by [`lo_components.data.text_dataset`][].

    The held-out shards are the split `"test"`. Where a folder has only training shards, or only held-out ones, the last
    twentieth of them is.

    **Arguments:**

    - `folder`: holds `training-monolingual.tokenized.shuffled`, `heldout-monolingual.tokenized.shuffled` or both, as
        published (or the archive's folder with these), or is one of the two.
    - `tokenizer`: encodes the sentences.
    - `length`: tokens in a sequence.
    - `cache`: a folder for the encoded text, as in [`lo_components.data.text_files`][].

    Raises `FileNotFoundError` or `ValueError`, naming the file, where there are no shards, one is not text in UTF-8, or
    they hold too little.

    ??? cite "Source"
        Chelba et al., *One Billion Word Benchmark* (arXiv 1312.3005).
    """
    folder = existing_folder(folder, "the shards of the One Billion Word Benchmark")
    place = folder / _ARCHIVE if (folder / _ARCHIVE).is_dir() else folder
    train = sorted(place.glob("training-monolingual.tokenized.shuffled/news.en*-of-*"))
    test = sorted(place.glob("heldout-monolingual.tokenized.shuffled/news.en*-of-*"))
    if not (train and test):
        shards = train or test or sorted(place.glob("news.en*-of-*"))
        if len(shards) < 2:
            raise FileNotFoundError(f"`{folder}` has fewer than two shards `news.en*-of-*`.")
        held_out = max(1, len(shards) // 20)
        train, test = shards[:-held_out], shards[-held_out:]
    files = {"train": train, "test": test}
    return _from_files(files, lambda: {s: _lines(some) for s, some in files.items()}, tokenizer, length, cache)


@typechecked
def python_docs(tokenizer: AbstractTokenizer = ByteTokenizer(), *, length: int = 64) -> TokenDataset:
    """The language reference that comes with Python (`pydoc_data.topics`): half a million characters, no download.

    The last twentieth of its lines is the split `"test"`. The text differs a little between versions of Python.

    **Arguments:**

    - `tokenizer`: encodes the lines.
    - `length`: tokens in a sequence.
    """
    from pydoc_data.topics import topics

    documents = _hold_out(lines("\n".join(topics[name] for name in sorted(topics))))
    return token_dataset(pack(documents, tokenizer, length, name="pydoc_data.topics"), tokenizer)


def _from_files(
    files: dict[str, list[Path]],
    documents: Callable[[], dict[str, Iterable[str]]],
    tokenizer: AbstractTokenizer,
    length: int,
    cache: str | Path | None,
) -> TokenDataset:
    def build() -> dict[str, Int[np.ndarray, "_ length"]]:
        return pack(documents(), tokenizer, length, name=", ".join(f"`{p}`" for some in files.values() for p in some))

    if cache is None:
        return token_dataset(build(), tokenizer)
    contents = {split: [[p.name, p.stat().st_size, sha256(p)] for p in some] for split, some in files.items()}
    source = {"files": contents, "tokenizer": tokenizer.fingerprint, "length": length}
    return token_dataset(cached(Path(cache), source, build), tokenizer)


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, str | Path):
        files = sorted(Path(paths).glob("*.txt")) if Path(paths).is_dir() else [Path(paths)]
    else:
        files = [Path(path) for path in paths]
    if not files:
        raise FileNotFoundError(f"`{paths}` has no `*.txt` files." if paths else "No text files were given.")
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file `{path}`.")
    return files


def _lines(files: list[Path]) -> Iterator[str]:
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
                except UnicodeDecodeError as error:
                    raise ValueError(f"`{path}` is not text in UTF-8: line {number}, {error.reason}.") from None
                if "\0" in text:
                    raise ValueError(f"`{path}` is not text in UTF-8: line {number} has a zero byte.")
                if text:
                    yield text


def _hold_out(documents: Iterable[str]) -> dict[str, Iterable[str]]:
    """The last twentieth of the documents as `"test"`."""
    documents = list(documents)
    end = len(documents) - max(1, len(documents) // 20)
    return {"train": documents[:end], "test": documents[end:]}
