from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array

_Arrays = dict[str, np.ndarray]

# The sizes of the groups of inputs of Celo2, each of which has its own weights in the first layer.
_GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)

# The arrays of Celo2: pylo's name, the original's, and the number of axes.
_CELO2 = [(f"first_layer_weights.{i}", f"ff_mod_stack/~/w0__{i}", 2) for i in range(len(_GROUPS))]
_CELO2 += [("first_layer_bias", "ff_mod_stack/~/b0", 1)]
_CELO2 += [("hidden.weight", "ff_mod_stack/~/w1", 2), ("hidden.bias", "ff_mod_stack/~/b1", 1)]
_CELO2 += [("output.weight", "ff_mod_stack/~/w2", 2), ("output.bias", "ff_mod_stack/~/b2", 1)]


def from_pylo(kind: str, arrays: Mapping[str, np.ndarray | Array]) -> dict[str, np.ndarray]:
    """Rename and transpose the weights of a `state_dict` of pylo to those of the JAX original.

    **Arguments:**

    - `kind`: `"celo2"`.
    - `arrays`: the arrays under pylo's names, for instance the result of [`lo_components.weights.read_arrays`][]. For
        Celo2, the first layer may be 14 matrices, `first_layer_weights.0` and so on, or one, `first_layer.weight`.

    **Returns:** the arrays under the original's flat names.

    Raises `ValueError` if `kind` is unknown, or if an array is missing, unexpected or of the wrong shape.

    ??? cite "Source"
        `pylo/models` of Belilovsky-Lab/pylo.
    """
    return _converter(_FROM_PYLO, kind)({name: np.asarray(array) for name, array in arrays.items()})


def to_pylo(kind: str, theta: Mapping[str, np.ndarray | Array]) -> dict[str, np.ndarray]:
    """Rename and transpose the weights of a JAX original to those of a `state_dict` of pylo.

    **Arguments:**

    - `kind`: `"celo2"`.
    - `theta`: the arrays under the original's flat names.

    **Returns:** the arrays under the names of pylo's published file, in its order, for
    [`lo_components.weights.write_arrays`][].

    Raises `ValueError` if `kind` is unknown, or if an array is missing, unexpected or of the wrong shape.
    """
    return _converter(_TO_PYLO, kind)({name: np.asarray(array) for name, array in theta.items()})


def _converter(converters: dict[str, Callable[[_Arrays], _Arrays]], kind: str) -> Callable[[_Arrays], _Arrays]:
    if kind not in converters:
        raise ValueError(f"`kind` must be one of {', '.join(sorted(converters))}, got {kind!r}.")
    return converters[kind]


def _celo2_from_pylo(arrays: _Arrays) -> _Arrays:
    if "first_layer.weight" in arrays:
        joined = arrays.pop("first_layer.weight")
        if joined.ndim != 2 or joined.shape[1] != sum(_GROUPS):
            raise ValueError(f"`first_layer.weight` must have {sum(_GROUPS)} columns, got shape {joined.shape}.")
        parts = np.split(joined, np.cumsum(_GROUPS)[:-1], axis=1)
        bias = {"first_layer_bias": arrays.pop("first_layer.bias")} if "first_layer.bias" in arrays else {}
        arrays = {**{f"first_layer_weights.{i}": part for i, part in enumerate(parts)}, **bias, **arrays}
    return _renamed(arrays, _CELO2)


def _celo2_to_pylo(theta: _Arrays) -> _Arrays:
    return _renamed(theta, [(original, name, axes) for name, original, axes in _CELO2])


def _renamed(arrays: _Arrays, names: list[tuple[str, str, int]]) -> _Arrays:
    """The arrays under other names, and matrices transposed: PyTorch's `Linear` has weights `[out, in]`."""
    missing = [name for name, _, _ in names if name not in arrays]
    extra = sorted(set(arrays) - {name for name, _, _ in names})
    if missing:
        raise ValueError(f"There is no array `{missing[0]}`; there are: {', '.join(sorted(arrays)) or 'none'}.")
    if extra:
        raise ValueError(f"There is an unexpected array `{extra[0]}`; expected: {', '.join(n for n, _, _ in names)}.")
    for name, _, axes in names:
        if arrays[name].ndim != axes:
            raise ValueError(f"`{name}` must have {axes} axes, got shape {arrays[name].shape}.")
    return {other: np.ascontiguousarray(arrays[name].T) for name, other, _ in names}


_FROM_PYLO = {"celo2": _celo2_from_pylo}
_TO_PYLO = {"celo2": _celo2_to_pylo}
