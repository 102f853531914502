"""A cache of encoded text that is used only if encoding again would give the same."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .._atomic import replacing
from ._files import parsing

FORMAT = 2

Tokens = dict[str, Int[np.ndarray, "_ length"]]


def cached(folder: Path, source: dict[str, Any], encode: Callable[[], Tokens]) -> Tokens:
    """The tokens in `folder` if they were written for the same `source` and are intact; else write `encode()` there.

    `source` contains, as JSON, everything that the tokens depend on. A stale or damaged cache is replaced with a
    warning.
    """
    path = folder / "lo-components-tokens.npz"
    source = {"format": FORMAT, **source}
    if path.exists():
        try:
            return _load(path, source)
        except (OSError, ValueError) as error:
            warnings.warn(f"The cache is rebuilt: {error}", stacklevel=2)
    tokens = encode()
    index = np.array(json.dumps({"source": source, "splits": list(tokens)}))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, index, *tokens.values())
    return tokens


def _load(path: Path, source: dict[str, Any]) -> Tokens:
    with parsing(path, "an intact cache of encoded text"), path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)  # reading an array checks its CRC-32
        index = json.loads(str(arrays["arr_0"]))
        cached_source = dict(index["source"])
        tokens = {split: arrays[f"arr_{number}"] for number, split in enumerate(index["splits"], 1)}
    for name in source:
        if cached_source.get(name) != source[name]:
            raise ValueError(f"`{path}` was written for other `{name}`.")
    return tokens
