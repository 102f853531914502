import hashlib
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Int

from .._atomic import replacing
from .._types import typechecked
from ._tokenizer import PAD_ID, AbstractTokenizer
from ._tokens import lines

_INSTALL = "SentencePiece tokenizers take the package sentencepiece: `pip install lo-components[data]`."
_LONGEST = 2**14  # characters of a line that the trainer sees at once; it would leave out longer ones


class Tokenizer(AbstractTokenizer):
    """A SentencePiece model. Made by `train_tokenizer` or `load_tokenizer`.

    If the model does not have its padding at id 0, every id is its piece's plus one, so that 0 is padding here as well.

    ??? cite "Source"
        Kudo, Richardson, *SentencePiece* (arXiv 1808.06226).
    """

    def __init__(self, model: bytes):
        """**Arguments:**

        - `model`: a serialized SentencePiece model.

        Raises `ValueError` where it is not one, or has no piece for the end of a sentence.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ImportError(_INSTALL) from None
        if not model:
            raise ValueError("The model is empty.")
        try:
            self._model = SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("This is not a SentencePiece model.") from None
        if self._model.eos_id() < 0:
            raise ValueError("The SentencePiece model has no piece for the end of a sentence.")
        self._offset = 0 if self._model.pad_id() == PAD_ID else 1
        self._fingerprint = f"sentencepiece {hashlib.sha256(model).hexdigest()} + {self._offset}"

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size() + self._offset

    @property
    def end_id(self) -> int:
        return self._model.eos_id() + self._offset

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, texts: list[str]) -> list[list[int]]:
        pieces = self._model.encode(texts)
        return pieces if self._offset == 0 else [[piece + self._offset for piece in text] for text in pieces]

    def decode(self, ids: Sequence[int] | Int[Array | np.ndarray, " length"]) -> str:
        documents = [[]]
        for token in np.asarray(ids).tolist():
            if token == self.end_id:
                documents.append([])
            elif token != PAD_ID:
                documents[-1].append(token - self._offset)
        return "\n".join(self._model.decode(document) for document in documents)


@typechecked
def load_tokenizer(path: str | Path) -> Tokenizer:
    """The SentencePiece model in a file.

    Raises `FileNotFoundError` or `ValueError`, naming the file, where there is none.
    """
    path = Path(path)
    model = path.read_bytes()
    try:
        return Tokenizer(model)
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


@typechecked
def train_tokenizer(texts: Iterable[str], path: str | Path, *, vocab_size: int = 32_000) -> Tokenizer:
    """Train a SentencePiece unigram model and write it to a file.

    Id 0 is padding, 1 stands for what the vocabulary does not cover, 2 ends a sentence. The same texts give the same
    model. Where they do not hold enough different pieces, the vocabulary is smaller than asked for, with a warning.

    **Arguments:**

    - `texts`: documents, each split into its lines. A million lines are plenty: `itertools.islice` takes the first.
    - `path`: the file, by convention `*.model`; replaced if it exists.
    - `vocab_size`: ids in all.

    Raises `ValueError` where there is no text, or `vocab_size` does not suffice for its characters.

    ??? cite "Source"
        Kudo, *Subword Regularization* (arXiv 1804.10959).
    """
    try:
        from sentencepiece import SentencePieceTrainer
    except ImportError:
        raise ImportError(_INSTALL) from None
    sentences = _short_lines(texts)
    first = next(sentences, None)
    if first is None:
        raise ValueError("There is no text to train a tokenizer on.")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            max_sentence_length=4 * _LONGEST,
            pad_id=PAD_ID,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"A vocabulary of {vocab_size} cannot be trained on this text: {error}") from None
    tokenizer = Tokenizer(model.getvalue())
    if tokenizer.vocab_size < vocab_size:
        message = f"The text has pieces for a vocabulary of {tokenizer.vocab_size} only, not {vocab_size}."
        warnings.warn(message, stacklevel=2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return tokenizer


def _short_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in lines(text):
            for start in range(0, len(line), _LONGEST):
                yield line[start : start + _LONGEST]
