import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._atomic import write_atomically
from .._description import RESERVED, constants, describe, in_words, is_array, is_key, key_impl
from .._tree import path_name

TreeT = TypeVar("TreeT")


class CheckpointError(ValueError):
    """A file is corrupt, incomplete or of something else. The message names the file, the reason and a remedy."""


def save_arrays(path: str | Path, tree: PyTree, *, metadata: Mapping[str, Any] = {}) -> None:
    """Write the arrays of a pytree, named by their key paths, with JSON metadata, to a safetensors file.

    Writing is atomic: the data go to a temporary file, which is flushed to disk and renamed. PRNG keys are stored as
    their data. The file contains its SHA-256, which `load_arrays` checks.

    **Arguments:**

    - `path`: the file, by convention `*.safetensors`; replaced if it exists. `~` is the home folder, here and in all
        functions that take a path.
    - `tree`: the pytree; leaves that are not arrays are skipped.
    - `metadata`: anything JSON can hold.

    Raises `ValueError` if two arrays have the same name, if safetensors cannot hold the dtype of an array, or if JSON
    cannot hold the metadata.
    """
    named = [(path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree) if is_array(leaf)]
    if len(dict(named)) != len(named):
        names = [name for name, _ in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`tree` has two arrays called `{twice}`; rename a dictionary key.")
    write(Path(path).expanduser(), dict(named), metadata)


def load_arrays(path: str | Path, like: TreeT) -> tuple[TreeT, dict[str, Any]]:
    """Read arrays into the structure of `like`, from a file of `save_arrays` or `save`, or from a checkpoint.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree with the expected names, shapes and dtypes; leaves that are not arrays are kept.

    **Returns:** `like` with its arrays replaced, and the metadata (the card, if `save` wrote the file).

    Raises `CheckpointError` if the file is truncated, differs in any byte from the one that was written, or holds other
    arrays than `like`. If `save` wrote the file, it also raises if `like` has other parts or constants than the saved
    learner, and names them. No code from the file is run.
    """
    arrays, metadata = read(Path(path).expanduser())
    origin = metadata.pop(RESERVED, None)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = {path_name(key_path) for key_path, leaf in leaves if is_array(leaf)}
    if origin is None:
        arrays = _with_pipelines(arrays, names)
    elif isinstance(origin, dict) and origin.get("prefix") == "":
        _refuse_other_constants(path, origin.get("learner"), like)
    if names != set(arrays):
        odd = sorted(names ^ set(arrays))[0]
        which = "lacks" if odd in names else "has an unexpected"
        raise CheckpointError(f"`{path}` {which} array `{odd}`: it belongs to something else.")
    loaded = []
    for key_path, leaf in leaves:
        loaded.append(_from_numpy(arrays[path_name(key_path)], leaf, key_path, path) if is_array(leaf) else leaf)
    return treedef.unflatten(loaded), metadata


def _refuse_other_constants(path: str | Path, description: Any, like: Any) -> None:
    """Raise if `like` has another class or another constant than the description, under the same name.

    Names that only one of them has are skipped: they belong to another version of a class, or to arrays, which are
    compared elsewhere.
    """
    try:
        there = dict(constants(description))
        here = dict(constants(describe(like, otherwise=in_words)[0]))
        differing = [name for name in here if name in there and here[name] != there[name]]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be compared with `like` ({error}).") from None
    if differing:
        words = [
            f"{f'`{name}`' if name else 'it'} is {_short(there[name])} there, {_short(here[name])} here"
            for name in differing[:3]
        ]
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        raise CheckpointError(
            f"`{path}` belongs to something else ({'; '.join([*words, *more])}): change `like`, or use `load(path)`, "
            "which needs none."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_pipelines(arrays: dict[str, np.ndarray], expected: set[str]) -> dict[str, np.ndarray]:
    """Arrays under their present names, for files from before learners held a `Pipeline`.

    `pipeline/head/weights/0` was `head/weights/0` in an optimizer, `optimizer/head/weights/0` in an aggregator.
    """
    arrays = dict(arrays)
    for name in expected - set(arrays):
        for old in (re.sub(r"(^|/)pipeline/", r"\1", name), re.sub(r"(^|/)pipeline/", r"\1optimizer/", name)):
            if old in arrays and old not in expected:
                arrays[name] = arrays.pop(old)
    return arrays


def write(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write arrays by name, and metadata, to a file with a checksum."""
    from safetensors.numpy import save

    data = {name: np.asarray(_to_numpy(leaf), order="C") for name, leaf in arrays.items()}
    for name, array in data.items():
        if array.dtype.name not in {dtype.name for dtype in _dtypes().values()}:
            raise ValueError(f"`{name}` is {array.dtype}, which safetensors cannot hold; convert it before saving.")
    try:
        text = json.dumps(dict(metadata), sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Metadata must be anything JSON can hold ({error}).") from None
    unsigned = _signature(_NO_DIGEST)
    data = save(data, metadata={"metadata": text, _DIGEST: _NO_DIGEST})
    start, view = data.index(unsigned), memoryview(data)
    signature = _signature(hashlib.sha256(data).hexdigest())
    write_atomically(path, view[:start], signature, view[start + len(signature) :])


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and metadata, from a file whose checksum is verified.

    Raises `CheckpointError` if it is wrong.
    """
    from safetensors import SafetensorError, deserialize

    try:
        data, signed = _verified(path)
        arrays = {name: to_array_of_safetensors(**parts) for name, parts in deserialize(data)}
        if _DIGEST not in signed and signed["sha256"] != _content_digest(arrays, signed["metadata"]):
            raise CheckpointError(_MISMATCH)
        metadata = json.loads(signed["metadata"], object_pairs_hook=without_duplicates)
        if not isinstance(metadata, dict):
            raise CheckpointError("its metadata are not a JSON object")
    # `TypeError` comes from metadata that are not text, `RecursionError` from deeply nested JSON.
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is cut short, corrupt or not of this library ({error}).") from None
    return arrays, metadata


def to_array_of_safetensors(shape: list[int], dtype: str, data: bytes | bytearray) -> np.ndarray:
    if dtype not in _dtypes():
        raise CheckpointError(f"it holds an array of dtype {dtype}, which NumPy does not know")
    return np.frombuffer(data, _dtypes()[dtype]).reshape(shape)


@functools.cache
def _dtypes() -> dict[str, np.dtype]:
    """Dtypes by the names that safetensors gives them."""
    names = {
        "BOOL": "bool",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "C64": "complex64",
    }
    names |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu"}
    names |= {f"F{n}": f"float{n}" for n in (16, 32, 64)}
    names |= {f"{kind}{n}": f"{word}{n}" for n in (8, 16, 32, 64) for kind, word in (("I", "int"), ("U", "uint"))}
    return {name: np.dtype(dtype) for name, dtype in names.items()}


_DIGEST = "file_sha256"
_NO_DIGEST = 64 * "0"
_MISMATCH = "its checksum does not match"


def _signature(digest: str) -> bytes:
    """The bytes of the digest in the header of a file. The digest is computed with zeros in its place."""
    return f'"{_DIGEST}":"{digest}"'.encode()


def _verified(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of a file, and the metadata in its header, after its checksum is verified.

    Files of version 0.1 have a digest of arrays and metadata only, `sha256`, which the caller must check.
    """
    with path.open("rb") as file:
        length, available = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size - 8
        if length > min(available, 100_000_000):  # the longest header that safetensors accepts
            raise CheckpointError(f"its header claims {length} bytes, but {max(available, 0)} follow")
        file.seek(0)
        data = file.read()
    header = data[8 : 8 + length]
    fields = json.loads(header, object_pairs_hook=without_duplicates)
    metadata = fields.get("__metadata__") if isinstance(fields, dict) else None
    if not isinstance(metadata, dict) or set(metadata) not in ({"metadata", _DIGEST}, {"metadata", "sha256"}):
        raise CheckpointError("it has no checksum")
    if _DIGEST in metadata:
        signature = _signature(metadata[_DIGEST])
        if header.count(signature) != 1:
            raise CheckpointError(_MISMATCH)
        digest = hashlib.sha256(data[:8] + header.replace(signature, _signature(_NO_DIGEST)))
        digest.update(memoryview(data)[8 + length :])
        if digest.hexdigest() != metadata[_DIGEST]:
            raise CheckpointError(_MISMATCH)
    return data, metadata


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CheckpointError("its header has a name twice")
    return found


def _content_digest(arrays: Mapping[str, np.ndarray], metadata: str) -> str:
    """The digest of version 0.1, over arrays and metadata."""
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        digest.update(f"{name}|{arrays[name].dtype.str}|{arrays[name].shape}|".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray, leaf: Any, key_path: tuple, path: str | Path) -> jax.Array | np.ndarray:
    expected = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    if array.shape != expected.shape or array.dtype != expected.dtype:
        raise CheckpointError(
            f"`{path}` holds `{path_name(key_path)}` as {array.dtype}{list(array.shape)}, expected "
            f"{expected.dtype}{list(expected.shape)}."
        )
    if isinstance(leaf, np.ndarray):
        return array
    value = jnp.asarray(array)
    return jax.random.wrap_key_data(value, impl=key_impl(leaf)) if is_key(leaf) else value
