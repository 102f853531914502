"""Encoded text on disk, used only as long as it is what encoding again would give."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .._atomic import replacing
from ._files import sha256

FORMAT = 1

Tokens = dict[str, Int[np.ndarray, "_ length"]]


def cached(folder: Path, source: dict[str, Any], build: Callable[[], Tokens]) -> Tokens:
    """What `build` returns, read from `folder` if that was written for the same `source` and is intact.

    `source` says in JSON's types all that the tokens depend on. A cache that does not agree is replaced, with a
    warning.
    """
    index = folder / "lo-components-tokens.json"
    source = {"format": FORMAT, **source}
    if index.exists():
        try:
            return _load(folder, index, source)
        except (OSError, ValueError) as error:
            warnings.warn(f"The cache `{folder}` is built again: {error}.", stacklevel=2)
    tokens = build()
    written = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, array) in enumerate(tokens.items()):
        path = _array_path(folder, number)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        written[split] = sha256(path)
    # Last, so that a cache without its index is one that was never finished.
    with replacing(index) as temporary:
        temporary.write_text(json.dumps({"source": source, "sha256": written}, indent=1))
    return tokens


def _load(folder: Path, index: Path, source: dict[str, Any]) -> Tokens:
    try:
        content = json.loads(index.read_text())
        found, digests = dict(content["source"]), dict(content["sha256"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"`{index.name}` is not the index of a cache") from None
    for name in source:
        if found.get(name) != source[name]:
            raise ValueError(f"its `{name}` is another than now")
    tokens = {}
    for number, (split, digest) in enumerate(digests.items()):
        path = _array_path(folder, number)
        if sha256(path) != digest:
            raise ValueError(f"`{path.name}` is not what was written")
        tokens[split] = np.load(path, allow_pickle=False)
    return tokens


def _array_path(folder: Path, number: int) -> Path:
    return folder / f"lo-components-tokens-{number}.npy"
