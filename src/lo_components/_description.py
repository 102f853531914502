"""Descriptions of modules as JSON: classes, constants and positions of arrays. Reading one runs and imports no code."""

import dataclasses
import functools
import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._learner import Learner

PACKAGE = __name__.partition(".")[0]

# The metadata key for the description of a file's learner.
RESERVED = "lo_components"

# JAX sorts the keys of a dictionary, so all of them must have the same type.
_KEYS = (set(), {int}, {str})
_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16")
_DTYPES += ("float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")
_DTYPES += ("float8_e5m2fnuz",)


def is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def key_impl(x: Any) -> Any:
    return jax.random.key_impl(x if isinstance(x, jax.Array) else jnp.empty((), x.dtype))


def version() -> str:
    return sys.modules[PACKAGE].__version__


def origin(learner: Learner, prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata entry `RESERVED` for a learner, and the learner's arrays by name.

    **Arguments:**

    - `learner`: a dataclass.
    - `prefix`: the prefix of the names of its arrays in the file.

    Raises `ValueError`, naming the field, if a file cannot hold a field.
    """
    description, arrays, classes = describe(learner)
    by_name(classes)
    return {"version": version(), "prefix": prefix, "learner": description}, arrays


def in_words(name: str, node: Any) -> str:
    """The placeholder for a part that a description cannot hold, if the description is only compared."""
    return "a class" if isinstance(node, type) else "a function" if callable(node) else f"a {type(node).__name__}"


def refuse(name: str, node: Any) -> NoReturn:
    raise ValueError(
        f"`{name}` is {in_words(name, node)}, which a file cannot hold: use a module with fields, a number, a string, "
        "or a public function of optax or jax.nn, such as `optax.adam`"
    )


def describe(
    root: Any, *, before: Callable[[Any], Any] = lambda node: node, otherwise: Callable[[str, Any], Any] = refuse
) -> tuple[Any, dict[str, Any], set[type]]:
    """Describe a dataclass, such as an Equinox module, as JSON.

    **Arguments:**

    - `root`: a dataclass.
    - `before`: maps each part, before it is described, to the part to describe in its place.
    - `otherwise`: maps the name and the value of a part that JSON cannot hold to JSON.

    **Returns:** the description, the arrays by key path, and the classes.

    Raises `ValueError` if two arrays have the same name. Errors of `otherwise` propagate.
    """
    arrays: dict[str, Any] = {}
    classes: set[type] = set()

    def at(name: str, node: Any) -> Any:
        node = before(node)
        if is_array(node):
            if name in arrays:
                raise ValueError(f"two arrays are called `{name}`; rename a dictionary key")
            arrays[name] = node
            if is_key(node):
                return {"key": key_impl(node)}
            return {"array": "numpy" if isinstance(node, np.ndarray) else "jax"}
        if node is None or type(node) in (bool, int, str):
            return node
        if type(node) is float:
            return node if math.isfinite(node) else {"float": repr(node)}
        if isinstance(node, list | tuple) and type(node) in (list, tuple):
            items = [at(_join(name, i), item) for i, item in enumerate(node)]
            return items if type(node) is list else {"tuple": items}
        if type(node) is dict and {type(key) for key in node} in _KEYS:
            return {"dict": [[key, at(_join(name, key), value)] for key, value in node.items()]}
        if (names := _state_fields(type(node))) is not None and class_name(type(node)) in _library():
            fields = {field: at(_join(name, field), getattr(node, field)) for field in names}
            return {"class": class_name(type(node)), "fields": fields}
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            classes.add(type(node))
            names = [f.name for f in dataclasses.fields(node) if not (_is_preset(f) and f.name not in vars(node))]
            fields = {field: at(_join(name, field), getattr(node, field)) for field in names}
            return {"class": class_name(type(node)), "fields": fields}
        if (dtype := _dtype_name(node)) is not None:
            return {"dtype": dtype}
        function = next((name for name, value in _functions().items() if value is node), None)
        return otherwise(name, node) if function is None else {"function": function}

    return at("", root), arrays, classes


def build(description: Any, arrays: dict[str, np.ndarray], classes: dict[str, type]) -> Any:
    """Build the object that was described. Fields are set one by one, then `__check_init__` is run.

    **Arguments:**

    - `description`: from `describe`, possibly read from an untrusted file.
    - `arrays`: by name; arrays that are used are removed.
    - `classes`: classes that the description may name besides those of the library, from `by_name`.

    Raises `ValueError` for anything that `describe` would not have written.
    """

    def at(name: str, node: Any) -> Any:
        match node:
            case None | bool() | int() | str():
                return node
            case float() if math.isfinite(node):
                return node
            case list():
                return [at(_join(name, i), item) for i, item in enumerate(node)]
            case {"class": str(cls), "fields": dict(fields)} if len(node) == 2:
                return instance(name, cls, fields)
            case dict() if len(node) != 1:
                pass
            case {"array": "numpy"}:
                return taken(name)
            case {"array": "jax"}:
                return to_jax(name, taken(name))
            case {"key": str(impl)}:
                return _to_key(name, impl, taken(name))
            case {"float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"tuple": list(items)}:
                return tuple(at(_join(name, i), item) for i, item in enumerate(items))
            case {"dict": list(pairs)} if _are_items(pairs):
                return {key: at(_join(name, key), value) for key, value in pairs}
            case {"function": str(function)} if function in _functions():
                return _functions()[function]
            case {"dtype": str(dtype)} if dtype in _DTYPES:
                return np.dtype(dtype)
        raise ValueError(f"describes `{name}` as {reprlib.repr(node)}, which has no meaning in this version")

    def taken(name: str) -> np.ndarray:
        if name not in arrays:
            raise ValueError(f"lacks array `{name}`")
        return arrays.pop(name)

    def instance(name: str, class_name: str, fields: dict[str, Any]) -> Any:
        cls = _library().get(class_name) or classes.get(class_name)
        if cls is None:
            raise ValueError(f"has a `{class_name}` at `{name}`, {_way_out(class_name)}")
        names = _state_fields(cls)
        if names is not None:
            possible = dict.fromkeys(names, False)
        else:
            # A field that is younger than the file has its default.
            possible = {f.name: f.default is not dataclasses.MISSING for f in dataclasses.fields(cls)}
        if unknown := set(fields) - set(possible):
            raise ValueError(f"has a `{class_name}` at `{name}` with an unknown field `{min(unknown)}`")
        if missing := {field for field, has_default in possible.items() if not has_default} - set(fields):
            raise ValueError(f"has a `{class_name}` at `{name}` without its field `{min(missing)}`")
        if names is not None:
            return cls(**{field: at(_join(name, field), value) for field, value in fields.items()})
        made = object.__new__(cls)
        for field in dataclasses.fields(cls):
            if field.name not in fields and not _is_preset(field):
                object.__setattr__(made, field.name, field.default)
        for field, value in fields.items():
            object.__setattr__(made, field, at(_join(name, field), value))
        try:
            for parent in cls.__mro__:
                vars(parent).get("__check_init__", lambda made: None)(made)
        except Exception as error:
            raise ValueError(f"has an invalid `{class_name}` at `{name}` ({error})") from None
        return made

    return at("", description)


def constants(description: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The names of classes and the constants in a description, each with its path. Arrays are skipped."""
    match description:
        case {"class": str(cls), "fields": dict(fields)}:
            yield name, cls.rpartition(".")[2]
            for field, value in fields.items():
                yield from constants(value, _join(name, field))
        case list(items) | {"tuple": list(items)}:
            yield name, f"{len(items)} entries"
            for i, item in enumerate(items):
                yield from constants(item, _join(name, i))
        case {"dict": list(pairs)} if _are_items(pairs):
            yield name, f"keys {', '.join(str(key) for key, _ in pairs)}" if pairs else "no keys"
            for key, value in pairs:
                yield from constants(value, _join(name, key))
        case {"array": _} | {"key": _}:
            return
        case {"float": str(text)} | {"function": str(text)} | {"dtype": str(text)}:
            yield name, text
        case dict():
            yield name, reprlib.repr(description)
        case _:
            yield name, description


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """Classes by their names in descriptions.

    Raises `TypeError` if one is not a concrete dataclass, and `ValueError` if two have the same name.
    """
    found: dict[str, type] = {}
    for cls in classes:
        if not _concrete(cls):
            raise TypeError(f"`classes` must be concrete dataclasses, such as Equinox modules; got {cls!r}.")
        if found.setdefault(class_name(cls), cls) is not cls:
            raise ValueError(f"Two classes are called `{class_name(cls)}`; rename one.")
    return found


def class_name(cls: type) -> str:
    """The public path of a class of the library; the bare name of any other class."""
    package, *path = cls.__module__.split(".")
    if package != PACKAGE:
        return cls.__name__
    public = package if path[0].startswith("_") else f"{package}.{path[0]}"
    exported = getattr(sys.modules[public], cls.__name__, None) is cls
    return f"{public if exported else cls.__module__}.{cls.__name__}"


def to_jax(name: str, array: np.ndarray) -> jax.Array:
    """A JAX array of the same dtype."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(f"holds `{name}` as {array.dtype}: first call `jax.config.update('jax_enable_x64', True)`")
    return jnp.asarray(array)


def _join(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def _is_preset(field: dataclasses.Field) -> bool:
    """Whether the field is no argument of `__init__` and has a default."""
    return not field.init and field.default is not dataclasses.MISSING


def _are_items(pairs: list) -> bool:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    keys = [key for key, _ in pairs]
    return {type(key) for key in keys} in _KEYS and len(set(keys)) == len(keys)


def _to_key(name: str, impl: str, data: np.ndarray) -> jax.Array:
    try:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    except Exception:
        raise ValueError(f"holds no key of kind {reprlib.repr(impl)} at `{name}`") from None


def _dtype_name(node: Any) -> str | None:
    """The name of a dtype, given as a dtype or as a scalar type such as `np.float32` or `jnp.float32`."""
    for name in _DTYPES:
        dtype = np.dtype(name)
        if node is dtype.type or node is getattr(jnp, name, None) or (isinstance(node, np.dtype) and node == dtype):
            return name
    return None


def _way_out(class_name: str) -> str:
    if class_name.startswith(f"{PACKAGE}."):
        return f"which lo_components {version()} does not have"
    name = class_name if class_name.isidentifier() else "..."
    return f"which is not part of this library: pass that class, `load(path, classes=[{name}])`"


def _state_fields(cls: Any) -> tuple[str, ...] | None:
    """The fields of a `NamedTuple`, as states are, also the initial ones that are learned; `None` for other classes."""
    return getattr(cls, "_fields", None) if isinstance(cls, type) and issubclass(cls, tuple) else None


def _concrete(cls: Any) -> bool:
    marks = ("__abstractmethods__", "__abstractvars__", "__abstractclassvars__")
    return isinstance(cls, type) and dataclasses.is_dataclass(cls) and not any(getattr(cls, m, ()) for m in marks)


@functools.cache
def _library() -> dict[str, type]:
    """The concrete dataclasses and states of this library, all of which are imported with it."""
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == PACKAGE]
    known = [(m, cls) for m in modules for cls in vars(m).values() if _concrete(cls) or _state_fields(cls) is not None]
    return {class_name(cls): cls for m, cls in known if cls.__module__ == m.__name__}


@functools.cache
def _functions() -> dict[str, Callable]:
    """The functions that a description may name: public ones of optax and jax.nn."""
    found = {}
    for module in (optax, optax.contrib, jax.nn):
        for name, value in vars(module).items():
            origin = getattr(value, "func", value)  # the function inside a `functools.partial`
            ours = str(getattr(origin, "__module__", "")).split(".")[0] in ("jax", "optax")
            if ours and callable(value) and not isinstance(value, type) and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = value
    return found
