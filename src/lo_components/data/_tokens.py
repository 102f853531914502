import itertools
from collections.abc import Iterable, Iterator

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._types import typechecked
from ._tokenizer import PAD_ID, AbstractTokenizer


class TokenDataset(eqx.Module):
    """Encoded text in named splits, as sequences of equal length.

    **Arguments:**

    - `splits`: by name, `"train"` at least; ids are in `[0, vocab_size)`.
    - `vocab_size`: the number of ids.
    - `pad_id`: the id of padding, which losses ignore; `None` if there is none.
    """

    splits: dict[str, Int[Array, "_ length"]]
    vocab_size: int = eqx.field(static=True)
    pad_id: int | None = eqx.field(default=PAD_ID, static=True)

    @property
    def length(self) -> int:
        """The number of tokens per sequence."""
        return self.splits["train"].shape[1]


@typechecked
def text_dataset(
    texts: dict[str, Iterable[str] | str], tokenizer: AbstractTokenizer, *, length: int = 64
) -> TokenDataset:
    """Encode documents and pack them into sequences of equal length.

    The documents of a split are concatenated, each followed by `end_id`, and cut every `length` tokens. An incomplete
    last sequence is dropped, so there is no padding. A language model makes `length - 1` predictions per sequence.

    **Arguments:**

    - `texts`: by split, `"train"` among them: the documents, or one string with a document per line.
    - `tokenizer`: for instance [`lo_components.data.ByteTokenizer`][].
    - `length`: tokens per sequence.

    **Returns:** the encoded text.

    Raises `ValueError` if `"train"` is missing, `length` is below 2, the tokenizer gives ids out of range, or a split
    has too little text for one sequence.
    """
    documents = {split: lines(text) if isinstance(text, str) else text for split, text in texts.items()}
    return token_dataset(pack(documents, tokenizer, length, name="The text"), tokenizer)


def lines(text: str) -> Iterator[str]:
    """The lines of a text that are not blank, without trailing white space."""
    return filter(None, (line.rstrip() for line in text.split("\n")))


def token_dataset(splits: dict[str, Int[np.ndarray, "_ length"]], tokenizer: AbstractTokenizer) -> TokenDataset:
    """Make packed sequences a data set."""
    return TokenDataset({split: jnp.asarray(tokens) for split, tokens in splits.items()}, tokenizer.vocab_size)


def pack(
    documents: dict[str, Iterable[str]], tokenizer: AbstractTokenizer, length: int, *, name: str
) -> dict[str, Int[np.ndarray, "_ length"]]:
    """The packed sequences of each split; `name` is the name of the text in error messages."""
    if "train" not in documents:
        raise ValueError(f"{name}: there is no split called 'train' (found: {', '.join(documents) or 'none'}).")
    if length < 2:
        raise ValueError(f"`length` must be at least 2, got {length}.")
    splits = {}
    for split, texts in documents.items():
        tokens = np.concatenate([np.zeros(0, np.int32), *_encode(texts, tokenizer)])
        if len(tokens) < length:
            raise ValueError(f"{name}: split '{split}' has {len(tokens)} tokens, too few for one sequence of {length}.")
        splits[split] = tokens[: len(tokens) // length * length].reshape(-1, length)
    return splits


def _encode(texts: Iterable[str], tokenizer: AbstractTokenizer) -> Iterator[np.ndarray]:
    """The ids of the documents in chunks: as lists of Python integers, all of them would take ten times the memory."""
    texts, end_id = iter(texts), tokenizer.end_id
    while chunk := list(itertools.islice(texts, 4096)):
        tokens = np.array([i for ids in tokenizer.encode(chunk) for i in (*ids, end_id)], np.int64)
        if tokens.min() < 1 or tokens.max() >= tokenizer.vocab_size:
            raise ValueError(f"The tokenizer gave ids that are not from 1 to {tokenizer.vocab_size - 1}.")
        yield tokens.astype(np.int32)
