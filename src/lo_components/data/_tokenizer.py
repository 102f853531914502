import abc
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int

PAD_ID = 0


class AbstractTokenizer(abc.ABC):
    """Text to integers and back. Id 0 is padding and never stands for text: losses leave it out."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are, padding included."""

    @property
    @abc.abstractmethod
    def end_id(self) -> int:
        """The id that is put behind each document."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """The same for two tokenizers only if they give the same ids: caches of encoded text carry it."""

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, all in `[1, vocab_size)`, without `end_id`."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | Int[Array | np.ndarray, " length"]) -> str:
        """The text of the ids, with a line for each document; padding counts for nothing."""


class ByteTokenizer(AbstractTokenizer):
    """The bytes of UTF-8 text, each plus one: 257 ids. A newline ends a document. Needs no file and no package."""

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
