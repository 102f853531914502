import abc
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int

PAD_ID = 0


class AbstractTokenizer(abc.ABC):
    """Maps text to token ids and back. Id 0 is padding: it never stands for text, and losses ignore it."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, padding included."""

    @property
    @abc.abstractmethod
    def end_id(self) -> int:
        """The id appended to each document."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A string that is equal for two tokenizers only if they give the same ids; stored with cached tokens."""

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode documents.

        **Arguments:**

        - `texts`: the documents.

        **Returns:** the ids of each document, all in `[1, vocab_size)`, without `end_id`.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | Int[Array | np.ndarray, " length"]) -> str:
        """Decode a sequence.

        **Arguments:**

        - `ids`: token ids, possibly of several documents; padding is skipped.

        **Returns:** the text, with one line per document.
        """


class ByteTokenizer(AbstractTokenizer):
    """The bytes of UTF-8 text plus one: 257 ids. A newline ends each document. Needs no training and no package."""

    @property
    def vocab_size(self) -> int:
        return 257

    @property
    def end_id(self) -> int:
        return 1 + ord("\n")

    @property
    def fingerprint(self) -> str:
        return "utf-8 bytes + 1"

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[1 + byte for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int] | Int[Array | np.ndarray, " length"]) -> str:
        return bytes(i - 1 for i in np.asarray(ids).tolist() if i != PAD_ID).decode(errors="replace")
