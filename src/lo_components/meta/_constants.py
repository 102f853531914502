"""What identifies a run besides its configuration: every constant, number and array that it begins with, by name."""

import dataclasses
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .. import _description
from .._learner import Learner, theta
from .._tree import path_name
from ._arguments import as_transformation

# Longer sequences of numbers are data.
_LONGEST = 64
# Of larger arrays, evenly spaced pieces are hashed, together of this size.
_HASHED_BYTES, _PIECES = 2**30, 1024
# The code of these packages is not the user's: a number in it belongs to a version, not to a run.
_LIBRARIES = {"builtins", "equinox", "functools", "jax", "jaxlib", "lo_components", "numpy", "optax"}


def constants(
    learner: Learner, estimator: Any, optimizer: Any = None, *, key: Any = None, **others: Any
) -> dict[str, str]:
    """Numbers, names of classes and functions, shapes and hashes of arrays, as text.

    Functions are recorded by their names, their defaults, the values that they close over, and the numbers in their
    code, but not their code. Modules that hold a mesh only place arrays on devices, so the modules that they wrap are
    recorded in their place. `others` are recorded by name, texts first. Names of what may differ although a run is the
    same, because it was computed on another platform or by other versions, contain that platform and those versions.
    """
    digests: dict[int, str] = {}  # of arrays by identity: functions often close over the data of their task
    found = {} if key is None else _of_array("key", key, digests)
    found |= {name: text for name, text in others.items() if isinstance(text, str)}
    learned = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(theta(learner))}
    of_learner = _described("learner", learner, digests)
    last = [name for name in of_learner if name.partition(" ")[0].removeprefix("learner/") in learned]
    found |= {name: text for name, text in of_learner.items() if name not in last}
    found |= _described("estimator", estimator, digests)
    if optimizer is not None:
        ready = isinstance(optimizer, optax.GradientTransformation)
        found |= _described("optimizer", optimizer if ready else as_transformation(optimizer), digests)
    for name, value in others.items():
        found |= {} if isinstance(value, str) else _described(name, value, digests)
    return found | {name: of_learner[name] for name in last}


def _described(name: str, part: Any, digests: dict[int, str], within: tuple[int, ...] = ()) -> dict[str, str]:
    """The constants of a part, and of the functions in it."""
    others: dict[str, Any] = {}

    def by_name(place: str, node: Any) -> Any:
        others[place] = node
        return {"function": _name(node)}

    description, arrays, classes = _description.describe(part, before=_simplified, otherwise=by_name)
    found = {key: _text(value, bool(within)) for key, value in _description.constants(description, name)}
    for place, array in arrays.items():
        found |= _of_array(_join(name, place), array, digests)
    for kind in sorted((c for c in classes if _package(c) not in _LIBRARIES), key=lambda c: c.__qualname__):
        others |= {f"{kind.__qualname__}.{method}": function for method, function in _methods(kind).items()}
    for place, node in others.items():
        if id(node) not in within:
            for variable, value in _variables(node).items():
                found |= _described(_join(name, place, variable), value, digests, (*within, id(node)))
    return found


def _text(value: Any, in_function: bool) -> str:
    """A constant as text. Optax turns some whole numbers in its closures into floats when they are first used."""
    whole = in_function and isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _join(*names: str) -> str:
    return "/".join(name for name in names if name)


def _simplified(node: Any) -> Any:
    if isinstance(node, list | tuple) and len(node) > _LONGEST:
        plain = all(isinstance(x, bool | int | float | str) for x in node)
        return f"{len(node)} entries" + (f", {_digest(repr(list(node)).encode())}" if plain else "")
    if isinstance(node, np.generic):
        return node.item()
    while dataclasses.is_dataclass(node) and not isinstance(node, type):
        values = [getattr(node, field.name, None) for field in dataclasses.fields(node)]
        if not any(isinstance(value, Mesh) for value in values):
            break
        node = next((value for value in values if dataclasses.is_dataclass(value)), None)
    return node


# Arrays.


def _of_array(name: str, array: Any, digests: dict[int, str]) -> dict[str, str]:
    """A scalar or a key by value; any other array by shape, and by a hash if this process has all of it."""
    if array.ndim == 0:
        value = jax.random.key_data(array) if _description.is_key(array) else array
        return {name: " ".join(np.array2string(np.asarray(value), separator=" ").split())}
    found = {name: f"{array.dtype}{list(array.shape)}"}
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return found
    # Random numbers, and whatever else was computed, are equal only on one platform with one version.
    computed = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.inexact)
    where = f", {jax.default_backend()}, jax {jax.__version__}" if computed else ""
    if id(array) not in digests:
        digests[id(array)] = _digest_of(array)
    return {**found, f"{name} (values{where})": digests[id(array)]}


def _digest_of(array: Any) -> str:
    if _description.is_key(array):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and array.is_fully_replicated:
        array = array.addressable_data(0)  # an array of its own, which does not keep its copy on the host
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size <= _HASHED_BYTES:
        return _digest(flat)
    size = _HASHED_BYTES // _PIECES
    starts = np.linspace(0, flat.size - size, _PIECES).astype(np.int64)
    return _digest(*(flat[start : start + size] for start in starts))


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# Functions.


def _name(node: Any) -> str:
    name = getattr(node, "__qualname__", None)
    if not callable(node) or not isinstance(name, str):
        return f"a {type(node).__name__}"
    return f"{_package(node)}.{name.replace('<locals>.', '')}"


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", None) or "builtins").partition(".")[0]


def _methods(kind: type) -> dict[str, Any]:
    """The functions that a class of the user's defines itself or inherits from other classes of the user's."""
    own = [base for base in reversed(kind.__mro__) if _package(base) not in _LIBRARIES]
    members = {name: member for base in own for name, member in vars(base).items()}
    functions: dict[str, Any] = {}
    for name, member in members.items():
        function: Any = getattr(member, "fget", None) or getattr(member, "__func__", member)
        functions[name] = inspect.unwrap(function) if callable(function) else None
    generated = ("<string>", "<dataclass>")
    return {
        name: function
        for name, function in functions.items()
        if isinstance(function, types.FunctionType)
        and _package(function) not in _LIBRARIES
        and not function.__code__.co_filename.startswith(generated)
    }


def _variables(node: Any) -> dict[str, Any]:
    """What a function, or another object that a description cannot hold, depends on, by name."""
    if isinstance(node, functools.partial):
        return {"function": node.func, **{str(i): value for i, value in enumerate(node.args)}, **node.keywords}
    if isinstance(node, tuple) and hasattr(node, "_asdict"):
        fields = node._asdict()  # pyright: ignore[reportAttributeAccessIssue]
        return dict(sorted(fields.items(), reverse=True))  # of a transformation, `update` says more than `init`
    if isinstance(node, types.MethodType):
        return {"function": node.__func__, **getattr(node.__self__, "__dict__", {})}
    if callable(node) and not isinstance(node, types.FunctionType | type):
        inner = getattr(node, "__wrapped__", None)
        kind: type = type(node)
        slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ()) if hasattr(node, name)]
        fields = {name: getattr(node, name) for name in slots} | getattr(node, "__dict__", {})
        return fields if inner is None else {"function": inner}
    if not isinstance(node, types.FunctionType):
        return {}
    code, ours = node.__code__, _package(node) in _LIBRARIES
    if ours and "<locals>" not in node.__qualname__:
        return {}
    cells = zip(code.co_freevars, node.__closure__ or (), strict=True)
    found = {name: value for name, cell in cells for value in _contents(cell)}
    positional = code.co_varnames[: code.co_argcount]
    defaults = node.__defaults__ or ()
    found |= dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    found |= node.__kwdefaults__ or {}
    if not ours:
        names = {name for inner in _codes(code) for name in inner.co_names}
        numbers = {name: node.__globals__.get(name) for name in sorted(names)}
        plain = (bool, int, float, np.ndarray, jax.Array)
        found |= {name: value for name, value in numbers.items() if isinstance(value, plain)}
        # Compilers of other versions keep other numbers as constants.
        version = f"numbers in the code, Python {sys.version_info.major}.{sys.version_info.minor}"
        found[version] = " ".join(repr(x) for inner in _codes(code) for x in _numbers(inner.co_consts)) or "none"
    return found


def _contents(cell: types.CellType) -> Iterator[Any]:
    """The value of a variable that a function closes over; none if it has not been assigned."""
    try:
        yield cell.cell_contents
    except ValueError:
        return


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions in it."""
    yield code
    for value in code.co_consts:
        if inspect.iscode(value):
            yield from _codes(value)


def _numbers(values: tuple) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _numbers(value)
        elif isinstance(value, int | float | complex) and not isinstance(value, bool):
            yield value
