import itertools
from collections.abc import Iterable, Iterator

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._types import typechecked
from ._tokenizer import PAD_ID, AbstractTokenizer


class TokenDataset(eqx.Module):
    """Named splits of encoded text, in sequences of one length.

    **Arguments:**

    - `splits`: at least `"train"`; ids in `[0, vocab_size)`.
    - `vocab_size`: the number of ids.
    - `pad_id`: the id that is no text and counts in no loss.
    """

    splits: dict[str, Int[Array, "_ length"]]
    vocab_size: int = eqx.field(static=True)
    pad_id: int | None = eqx.field(default=PAD_ID, static=True)

    @property
    def length(self) -> int:
        """How many tokens a sequence has."""
        return self.splits["train"].shape[1]


@typechecked
def text_dataset(
    texts: dict[str, Iterable[str] | str], tokenizer: AbstractTokenizer, *, length: int = 64
) -> TokenDataset:
    """Encode documents and pack them into sequences: one after the other, each with `end_id` behind it, cut every
    `length` tokens. What does not fill a last sequence is left out, so there is no padding.

    A language model that predicts each token from those before it makes `length - 1` predictions for a sequence.

    **Arguments:**

    - `texts`: by split, `"train"` among them, the documents; or one string, of which each line is a document.
    - `tokenizer`: for instance [`lo_components.data.ByteTokenizer`][].
    - `length`: tokens in a sequence.

    Raises `ValueError` where a split has too little text for one sequence.
    """
    documents = {split: lines(text) if isinstance(text, str) else text for split, text in texts.items()}
    return token_dataset(pack(documents, tokenizer, length, name="The text"), tokenizer)


def lines(text: str) -> Iterator[str]:
    """The lines of a text that are not blank, without their ends."""
    return filter(None, (line.rstrip() for line in text.split("\n")))


def token_dataset(splits: dict[str, Int[np.ndarray, "_ length"]], tokenizer: AbstractTokenizer) -> TokenDataset:
    """Packed sequences as a data set."""
    return TokenDataset({split: jnp.asarray(tokens) for split, tokens in splits.items()}, tokenizer.vocab_size)


def pack(
    documents: dict[str, Iterable[str]], tokenizer: AbstractTokenizer, length: int, *, name: str
) -> dict[str, Int[np.ndarray, "_ length"]]:
    """The packed sequences of each split; `name` is what error messages call the text."""
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
    """The ids of the documents, some thousand at a time: lists of Python numbers take ten times the memory."""
    texts, end = iter(texts), tokenizer.end_id
    while some := list(itertools.islice(texts, 4096)):
        tokens = np.array([i for ids in tokenizer.encode(some) for i in (*ids, end)], np.int64)
        if tokens.min() < 1 or tokens.max() >= tokenizer.vocab_size:
            raise ValueError(f"The tokenizer gave ids outside of 1 to {tokenizer.vocab_size - 1}.")
        yield tokens.astype(np.int32)
