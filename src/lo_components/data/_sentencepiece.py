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

_INSTALL = "SentencePiece tokenizers need the package sentencepiece: `pip install lo-components[data]`."
_MAX_LINE = 2**14  # characters; the trainer would skip longer lines, so they are cut


class Tokenizer(AbstractTokenizer):
    """A SentencePiece model, from `train_tokenizer` or `load_tokenizer`.

    If padding is not id 0 in the model, all its ids are shifted by one, so that id 0 is padding here as well.

    ??? cite "Source"
        Kudo, Richardson, *SentencePiece* (arXiv 1808.06226).
    """

    def __init__(self, model: bytes):
        """**Arguments:**

        - `model`: a serialized SentencePiece model.

        Raises `ImportError` if sentencepiece is not installed, and `ValueError` if `model` is not a SentencePiece model
        or has no end-of-sentence piece.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ImportError(_INSTALL) from None
        if not model:
            raise ValueError("The SentencePiece model is empty.")
        try:
            self._model = SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("This is not a SentencePiece model.") from None
        if self._model.eos_id() < 0:
            raise ValueError("The SentencePiece model has no end-of-sentence piece.")
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
    """Load a SentencePiece model.

    **Arguments:**

    - `path`: the model file, by convention `*.model`.

    **Returns:** the tokenizer.

    Raises `FileNotFoundError` if there is no such file, and `ValueError`, naming the file, if it is not a SentencePiece
    model.
    """
    path = Path(path).expanduser()
    model = path.read_bytes()
    try:
        return Tokenizer(model)
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


@typechecked
def train_tokenizer(texts: Iterable[str], path: str | Path, *, vocab_size: int = 32_000) -> Tokenizer:
    """Train a SentencePiece unigram model and save it.

    Id 0 is padding, 1 the unknown token and 2 the end of a sentence. Training is deterministic.

    **Arguments:**

    - `texts`: documents; each line is a sentence. A million lines are plenty, so pass for instance
        `itertools.islice(texts, 1_000_000)`.
    - `path`: the file to write, by convention `*.model`; replaced if it exists.
    - `vocab_size`: the number of ids. If the text supports only a smaller vocabulary, that is trained, with a warning.

    **Returns:** the tokenizer.

    Raises `ImportError` if sentencepiece is not installed, and `ValueError` if there is no text or `vocab_size` is too
    small for its characters.

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
            max_sentence_length=4 * _MAX_LINE,
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
        message = f"The text supports a vocabulary of only {tokenizer.vocab_size}, not {vocab_size}."
        warnings.warn(message, stacklevel=2)
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return tokenizer


def _short_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in lines(text):
            for start in range(0, len(line), _MAX_LINE):
                yield line[start : start + _MAX_LINE]
