"""The API reference says what the code says: signatures as Python has them, docstrings that are complete."""

import ast
import builtins
import importlib
import inspect
import re
import textwrap
import typing
from functools import cache

import griffe
import pytest
from helpers import SOURCE, public_modules, public_objects

DOCS = SOURCE.parents[1] / "docs"

# A summary that begins so states what is returned; any other says what is done.
_STATES_THE_RESULT = re.compile(r"(The|An?|Whether|Each|Every|All) ")


def _is_abstract(thing) -> bool:
    return thing.__name__.startswith("Abstract")


def _methods(cls: type):
    """The public methods and properties that a class itself writes, with their functions."""
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            yield name, function


def _doc(thing) -> str:
    """A docstring; for a class with that of its `__init__`."""
    init = vars(thing).get("__init__") if inspect.isclass(thing) else None
    return "\n\n".join(inspect.cleandoc(x.__doc__ or "") for x in (thing, init) if x is not None)


def _assert_none(found: list[str]):
    """Fail with every violation, one a line."""
    assert not found, f"{len(found)}\n" + "\n".join(found)


# Signatures.


@pytest.fixture(scope="module")
def pages():
    """The package as the API pages read it."""
    extensions = griffe.load_extensions(str(DOCS / "griffe_fields.py"))
    return griffe.load("lo_components", search_paths=[SOURCE.parent], extensions=extensions)


def test_rendered_signatures_are_those_of_python(pages):
    found = []
    for thing, name in public_objects().items():
        if typing.is_typeddict(thing):
            continue  # Its keys are arguments of other functions.
        shown = pages[name.removeprefix("lo_components.")]
        things = [(name, shown.all_members.get("__init__") if inspect.isclass(thing) else shown, thing)]
        if inspect.isclass(thing):
            things += [
                (f"{name}.{m}", shown[m], f) for m, f in _methods(thing) if not isinstance(vars(thing)[m], property)
            ]
        for label, rendered, real in things:
            if (a := _rendered(rendered)) != (b := _real(real)):
                found.append(f"{label}\n    shown {a}\n    is    {b}")
    _assert_none(found)


def _rendered(function) -> list[tuple[str, str, bool]]:
    parameters = [] if function is None else [p for p in function.parameters if p.name != "self"]
    optional = [p.default is not None and not p.kind.value.startswith("variadic") for p in parameters]
    return [(p.name, p.kind.value, o) for p, o in zip(parameters, optional, strict=True)]


def _real(thing) -> list[tuple[str, str, bool]]:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return []
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    return [(p.name, p.kind.description, p.default is not p.empty) for p in parameters]


# Docstrings.


def test_everything_public_has_a_docstring():
    found = [name for thing, name in public_objects().items() if not thing.__doc__ or _is_generated(thing)]
    found += [module.__name__ for module in public_modules() if not module.__doc__]
    for thing, name in public_objects().items():
        if inspect.isclass(thing) and _is_abstract(thing):
            found += [f"{name}.{method}" for method, function in _methods(thing) if not function.__doc__]
    _assert_none(found)


def _is_generated(thing) -> bool:
    """Dataclasses without a docstring get their signature as one."""
    return (thing.__doc__ or "").startswith(f"{thing.__name__}(")


def test_every_parameter_is_described():
    """Classes and functions have a bullet for each under **Arguments:**, their own or of the object they refer to.

    Methods name each in back-ticks; those that implement an abstract method need no docstring of their own.
    """
    found = []
    for thing, name in public_objects().items():
        if not (inspect.isclass(thing) and (_is_abstract(thing) or issubclass(thing, Exception))):
            keys = inspect.get_annotations(thing) if typing.is_typeddict(thing) else inspect.signature(thing).parameters
            found += _missing(name, set(keys) - _described(thing))
        for method, function in _methods(thing) if inspect.isclass(thing) else []:
            if function.__doc__:
                named = {
                    word for code in re.findall(r"`([^`]*)`", function.__doc__) for word in re.findall(r"\w+", code)
                }
                parameters = set(inspect.signature(function).parameters) - {"self", "cls", "key"}
                found += _missing(f"{name}.{method}", parameters - named)
    _assert_none(found)


def _missing(name: str, parameters: set[str]) -> list[str]:
    return [f"{name}: {', '.join(sorted(parameters))}"] if parameters else []


@cache
def _described(thing) -> frozenset[str]:
    """The parameters that a docstring describes, itself or by "as in" another whose docstring does."""
    names = set()
    for bullet in re.findall(r"^- (?:[^\n]|\n +)*", _arguments(_doc(thing)), re.MULTILINE):
        own = set(re.findall(r"`\*{0,2}(\w+)`", bullet.split(":")[0]))
        reference = re.search(r": as in \[`([\w.]+)`\]\[\]", bullet)
        names |= own & _described(_resolve(reference[1])) if reference else own
    return frozenset(names)


def _arguments(doc: str) -> str:
    """The section **Arguments:**, up to the next line that belongs to no bullet."""
    section = re.search(r"^\*\*Arguments:\*\*(.*?)(?=^(?!- |  |$)|\Z)", doc, re.MULTILINE | re.DOTALL)
    return section[1] if section else ""


def _resolve(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_error_is_named():
    """Every error that a body raises is named in its docstring, or in that of the class."""
    found = []
    for thing, name in public_objects().items():
        if inspect.isfunction(thing):
            found += _missing(name, _raised(thing) - _named(thing))
            continue
        bodies = {m: f for m, f in vars(thing).items() if m in ("__init__", "__check_init__") and _written_in(thing, f)}
        for method, function in {**bodies, **dict(_methods(thing))}.items():
            found += _missing(f"{name}.{method}", _raised(function) - _named(function) - _named(thing))
    _assert_none(found)


def _written_in(cls: type, function) -> bool:
    return inspect.unwrap(function).__code__.co_filename == inspect.getsourcefile(cls)


def _raised(function) -> set[str]:
    function = inspect.unwrap(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    names = {ast.unparse(x.func if isinstance(x, ast.Call) else x) for x in raised}
    return {name for name in names if inspect.isclass(function.__globals__.get(name, getattr(builtins, name, None)))}


def _named(thing) -> set[str]:
    return set(re.findall(r"`(\w+)`", _doc(thing)))


def test_what_is_returned_is_described():
    """By the summary, if it begins as a noun does ("The mean loss ..."), or under **Returns:**."""
    found = []
    for thing, name in public_objects().items():
        methods = [(f"{name}.{m}", f) for m, f in _methods(thing)] if inspect.isclass(thing) else [(name, thing)]
        for label, function in methods:
            doc, returned = _doc(function), inspect.signature(function).return_annotation
            if doc and returned is not None and not _STATES_THE_RESULT.match(doc) and "**Returns:**" not in doc:
                found.append(f"{label}: {doc.splitlines()[0]}")
    _assert_none(found)
