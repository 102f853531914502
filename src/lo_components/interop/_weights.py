import hashlib
import json
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
    stored as their data. A SHA-256 of arrays and metadata goes along, which `load_arrays` checks.

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
    text = json.dumps(dict(metadata), sort_keys=True)
    write_atomically(path, save(arrays, metadata={"metadata": text, "sha256": _digest(arrays, text)}))


def load_arrays(path: str | Path, like: TreeT) -> tuple[TreeT, dict[str, Any]]:
    """Read a file written by `save_arrays` into the structure of `like`.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree with the names, shapes and dtypes to expect; its other leaves are kept.

    **Returns:** `like` with its arrays replaced, and the metadata.

    Raises `CheckpointError` where the file is cut short, corrupt, or holds other arrays than `like`.
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
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last two: a dtype unknown to NumPy
        raise CheckpointError(f"`{path}` is cut short or corrupt ({error}).") from None
    if set(header) != {"metadata", "sha256"} or header["sha256"] != _digest(arrays, header["metadata"]):
        raise CheckpointError(f"`{path}` is corrupt, or was not written by this library: its checksum does not match.")
    return arrays, json.loads(header["metadata"])


def _digest(arrays: Mapping[str, np.ndarray], metadata: str) -> str:
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
