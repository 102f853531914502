import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._atomic import write_atomically
from .._tree import path_name

TreeT = TypeVar("TreeT")


class CheckpointError(ValueError):
    """A file that is not a complete checkpoint of the expected kind. The message says which file and why."""


def save_arrays(path: str | Path, tree: PyTree, *, metadata: Mapping[str, Any] = {}) -> None:
    """Write the arrays of a pytree, named by their key paths, with JSON metadata, to a safetensors file.

    The file appears whole or not at all: it is written beside its place, flushed to disk and renamed. PRNG keys are
    stored as their data. A SHA-256 of the whole file goes along, which `load_arrays` checks.

    **Arguments:**

    - `path`: the file, by convention `*.safetensors`; replaced if it exists.
    - `tree`: leaves that are not arrays are left out.
    - `metadata`: anything JSON can hold.
    """
    from safetensors.numpy import save

    path = Path(path)
    named = _named_arrays(tree)
    arrays = {name: np.asarray(_to_numpy(leaf), order="C") for name, leaf in named}
    if len(arrays) != len(named):
        names = [name for name, _ in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`tree` has two arrays called `{twice}`; rename a dictionary key.")
    unsigned = _signature(_NO_DIGEST)
    data = save(arrays, metadata={"metadata": json.dumps(dict(metadata), sort_keys=True), _DIGEST: _NO_DIGEST})
    start, view = data.index(unsigned), memoryview(data)
    signature = _signature(hashlib.sha256(data).hexdigest())
    write_atomically(path, view[:start], signature, view[start + len(signature) :])


def load_arrays(path: str | Path, like: TreeT) -> tuple[TreeT, dict[str, Any]]:
    """Read a file written by `save_arrays` into the structure of `like`.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree with the names, shapes and dtypes to expect; its other leaves are kept.

    **Returns:** `like` with its arrays replaced, and the metadata.

    Raises `CheckpointError` where the file is cut short, differs from what was written in any byte, or holds other
    arrays than `like`. No code from the file is run.
    """
    arrays, metadata = _read(Path(path))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = {path_name(key_path) for key_path, leaf in leaves if _is_array(leaf)}
    if names != set(arrays):
        odd = sorted(names ^ set(arrays))[0]
        which = "lacks" if odd in names else "has an unexpected"
        raise CheckpointError(f"`{path}` {which} array `{odd}`: it belongs to something else.")
    loaded = []
    for key_path, leaf in leaves:
        loaded.append(_from_numpy(arrays[path_name(key_path)], leaf, key_path, path) if _is_array(leaf) else leaf)
    return treedef.unflatten(loaded), metadata


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        signed = _verified_metadata(path)
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if _DIGEST not in signed and signed["sha256"] != _content_digest(arrays, signed["metadata"]):
            raise CheckpointError(_MISMATCH)
        metadata = json.loads(signed["metadata"])
        if not isinstance(metadata, dict):
            raise CheckpointError("its metadata are not a JSON object")
    # `TypeError` and `AttributeError` come from dtypes unknown to NumPy, `RecursionError` from JSON nested too deeply.
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is cut short, corrupt or not of this library ({error}).") from None
    return arrays, metadata


_DIGEST = "file_sha256"
_NO_DIGEST = 64 * "0"
_MISMATCH = "its checksum does not match"


def _signature(digest: str) -> bytes:
    """Where the digest stands in a file's header. The digest is that of the file with zeros in its place."""
    return f'"{_DIGEST}":"{digest}"'.encode()


def _verified_metadata(path: Path) -> dict[str, str]:
    """The metadata in a file's header, once every byte of the file has passed the check.

    Files of version 0.1 have a digest of their content alone, `sha256`, which is left to the caller.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length, available = int.from_bytes(prefix, "little"), os.fstat(file.fileno()).st_size - 8
        if length > min(available, 100_000_000):  # the longest header that safetensors reads
            raise CheckpointError(f"its header claims {length} bytes, but {max(available, 0)} follow")
        header = file.read(length)
        fields = json.loads(header, object_pairs_hook=_without_duplicates)
        metadata = fields.get("__metadata__") if isinstance(fields, dict) else None
        if not isinstance(metadata, dict) or set(metadata) not in ({"metadata", _DIGEST}, {"metadata", "sha256"}):
            raise CheckpointError("it has no checksum")
        if _DIGEST in metadata:
            signature = _signature(metadata[_DIGEST])
            if header.count(signature) != 1:
                raise CheckpointError(_MISMATCH)
            digest = hashlib.sha256(prefix + header.replace(signature, _signature(_NO_DIGEST)))
            while chunk := file.read(2**20):
                digest.update(chunk)
            if digest.hexdigest() != metadata[_DIGEST]:
                raise CheckpointError(_MISMATCH)
    return metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CheckpointError("its header has a name twice")
    return found


def _content_digest(arrays: Mapping[str, np.ndarray], metadata: str) -> str:
    """The digest of version 0.1: of arrays and metadata."""
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        digest.update(f"{name}|{arrays[name].dtype.str}|{arrays[name].shape}|".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _named_arrays(tree: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree) if _is_array(leaf)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    return jax.random.key_impl(leaf if isinstance(leaf, jax.Array) else jnp.empty((), leaf.dtype))


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray, leaf: Any, key_path: tuple, path: str | Path) -> jax.Array | np.ndarray:
    expected = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if array.shape != expected.shape or array.dtype != expected.dtype:
        raise CheckpointError(
            f"`{path}` holds `{path_name(key_path)}` as {array.dtype}{list(array.shape)}, expected "
            f"{expected.dtype}{list(expected.shape)}."
        )
    if isinstance(leaf, np.ndarray):
        return array
    value = jnp.asarray(array)
    return jax.random.wrap_key_data(value, impl=_key_impl(leaf)) if _is_key(leaf) else value
