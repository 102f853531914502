from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """Iterate over the lines of text files that are not blank.

    **Arguments:**

    - `paths`: a file, a folder (its `*.txt` files in alphabetical order), or several files.

    **Returns:** an iterator over lines, without trailing white space.

    Raises `FileNotFoundError` if a file is missing and `ValueError` if one is not UTF-8 text; both name it.
    """
    return _lines(_files(paths))


@typechecked
def text_files(
    paths: str | Path | Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]],
    tokenizer: AbstractTokenizer,
    *,
    length: int = 64,
    cache: str | Path | None = None,
) -> TokenDataset:
    """Read text files with one document per line, packed as in [`lo_components.data.text_dataset`][].

    **Arguments:**

    - `paths`: a file, a folder (its `*.txt` files in alphabetical order) or several files, the last 5 % of whose lines
        become the split `"test"`; or a dictionary from splits to any of these.
    - `tokenizer`: encodes the lines.
    - `length`: tokens per sequence.
    - `cache`: a folder for the encoded text of this data set, created if missing. The cache is rebuilt, with a warning,
        if it is damaged or was written for other files, another tokenizer or another length.

    **Returns:** the encoded text.

    Raises `FileNotFoundError` if a file is missing, and `ValueError` if one is not UTF-8 text or a split has too little
    text for one sequence; both name the file.
    """
    if isinstance(paths, Mapping):
        files = {split: _files(split_paths) for split, split_paths in paths.items()}
        return _from_files(
            files, lambda: {split: _lines(paths) for split, paths in files.items()}, tokenizer, length, cache
        )
    files = {"all": _files(paths)}
    return _from_files(files, lambda: _hold_out(_lines(files["all"])), tokenizer, length, cache)


@typechecked
def lm1b(
    folder: str | Path, tokenizer: AbstractTokenizer, *, length: int = 64, cache: str | Path | None = None
) -> TokenDataset:
    """Read the One Billion Word Benchmark: shuffled news sentences, packed as in [`lo_components.data.text_dataset`][].

    **Arguments:**

    - `folder`: contains `training-monolingual.tokenized.shuffled`, `heldout-monolingual.tokenized.shuffled` or both, or
        the archive's folder; or is one of these.
    - `tokenizer`: encodes the sentences.
    - `length`: tokens per sequence.
    - `cache`: a folder for the encoded text, as in [`lo_components.data.text_files`][].

    **Returns:** the encoded text. The held-out shards become the split `"test"`; if there are only training or only
    held-out shards, the last 5 % of them do.

    Raises `FileNotFoundError` if there are fewer than two shards, and `ValueError`, naming the file, if one is not
    UTF-8 text or a split has too little text for one sequence.

    ??? cite "Source"
        Chelba et al., *One Billion Word Benchmark* (arXiv 1312.3005).
    """
    folder = existing_folder(folder, "the shards of the One Billion Word Benchmark")
    root = folder / _ARCHIVE if (folder / _ARCHIVE).is_dir() else folder
    train = sorted(root.glob("training-monolingual.tokenized.shuffled/news.en*-of-*"))
    test = sorted(root.glob("heldout-monolingual.tokenized.shuffled/news.en*-of-*"))
    if not (train and test):
        shards = train or test or sorted(root.glob("news.en*-of-*"))
        if len(shards) < 2:
            raise FileNotFoundError(f"`{folder}` has fewer than two shards `news.en*-of-*`.")
        held_out = max(1, len(shards) // 20)
        train, test = shards[:-held_out], shards[-held_out:]
    files = {"train": train, "test": test}
    return _from_files(
        files, lambda: {split: _lines(paths) for split, paths in files.items()}, tokenizer, length, cache
    )


@typechecked
def python_docs(tokenizer: AbstractTokenizer = ByteTokenizer(), *, length: int = 64) -> TokenDataset:
    """The language reference that is included in Python (`pydoc_data.topics`): half a million characters, no download.

    The text differs slightly between versions of Python.

    **Arguments:**

    - `tokenizer`: encodes the lines.
    - `length`: tokens per sequence.

    **Returns:** the encoded text; the last 5 % of the lines are the split `"test"`.

    Raises `ValueError` if `length` is below 2 or too large for one sequence per split.
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
    def encode() -> dict[str, Int[np.ndarray, "_ length"]]:
        return pack(documents(), tokenizer, length, name=", ".join(f"`{p}`" for paths in files.values() for p in paths))

    if cache is None:
        return token_dataset(encode(), tokenizer)
    contents = {split: [[p.name, p.stat().st_size, sha256(p)] for p in paths] for split, paths in files.items()}
    source = {"files": contents, "tokenizer": tokenizer.fingerprint, "length": length}
    return token_dataset(cached(Path(cache).expanduser(), source, encode), tokenizer)


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, str | Path):
        path = Path(paths).expanduser()
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    else:
        files = [Path(path).expanduser() for path in paths]
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
                    raise ValueError(f"`{path}` is not UTF-8 text: line {number}, {error.reason}.") from None
                if "\0" in text:
                    raise ValueError(f"`{path}` is not UTF-8 text: line {number} has a zero byte.")
                if text:
                    yield text


def _hold_out(documents: Iterable[str]) -> dict[str, Iterable[str]]:
    """Make the last 5 % of the documents the split `"test"`."""
    documents = list(documents)
    end = len(documents) - max(1, len(documents) // 20)
    return {"train": documents[:end], "test": documents[end:]}
