"""The rules of CONTRIBUTING.md that a machine can check, over every class and function of the package."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil

from helpers import SOURCE, public_objects

# Bodies that may be overridden: a wrapper's forwards, and two defaults that save most subclasses a line.
OVERRIDABLE = {
    "AbstractTaskWrapper",
    "AbstractFeature.requires",
    "AbstractFeature.pointwise",
    "AbstractHead.blockwise",
    "AbstractStepRule.requires",
}
# Strings that may be compared with a constant. They describe data, or come from elsewhere; none chooses an algorithm.
COMPARED = {
    "split": "names a part of a data set",
    "role": "what an array is to the model; the parametrizations' tables are by role",
    "layout": "how a weight is stored",
    "name": "of jax's primitives, of the operating system, or of a field",
    "suffix": "of a file",
    "mode": "of Pillow's images",
    "order": "of NumPy's arrays",
}


def _classes() -> list[type]:
    """Every class that the package defines, private ones too."""
    import lo_components

    modules = [importlib.import_module(i.name) for i in pkgutil.walk_packages(lo_components.__path__, "lo_components.")]
    found = {x for m in modules for x in vars(m).values() if inspect.isclass(x) and _ours(x)}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def _ours(cls: type) -> bool:
    return cls.__module__.startswith("lo_components")


def _bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if _ours(base)]


def _is_abstract(cls: type) -> bool:
    return cls.__name__.lstrip("_").startswith("Abstract")


def _assert_none(found: list[str]):
    """Fail with every violation, one a line."""
    assert not found, "\n" + "\n".join(found)


def test_a_class_is_abstract_or_final():
    classes = _classes()
    assert len(classes) > 100
    pairs = [(cls, base) for cls in classes for base in _bases(cls) if not _is_abstract(base)]
    _assert_none([f"{cls.__name__}: inherits from the concrete {base.__name__}" for cls, base in pairs])


def test_abstract_classes_cannot_be_instantiated_and_concrete_ones_miss_nothing():
    wrong = [cls for cls in _classes() if bool(_demands(cls)) != _is_abstract(cls)]
    _assert_none([f"{cls.__name__}: demands {_demands(cls) or 'nothing'}" for cls in wrong])


def _demands(cls: type) -> set[str]:
    kinds = ("__abstractmethods__", "__abstractvars__", "__abstractclassvars__")
    return {name for kind in kinds for name in getattr(cls, kind, ())}


def test_no_method_with_a_body_is_overridden():
    found = []
    for cls in _classes():
        for name in vars(cls).keys() - {"__init__", "__check_init__"}:
            for base in _bases(cls):
                allowed = {base.__name__, f"{base.__name__}.{name}"} & OVERRIDABLE
                if _has_body(cls, name) and _has_body(base, name) and not allowed:
                    found.append(f"{cls.__name__}.{name}: overrides a body of {base.__name__}")
    _assert_none(found)


def _has_body(cls: type, name: str) -> bool:
    """Whether a class itself writes this method or property; what dataclasses generate is in no file."""
    member = vars(cls).get(name)
    if getattr(member, "__isabstractmethod__", False):
        return False
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return code is not None and code.co_filename == inspect.getsourcefile(cls)


def test_fields_and_init_are_in_one_class():
    found = []
    for cls in _classes():
        own = inspect.get_annotations(cls)
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        inherited = [field.name for field in fields if field.name not in own]
        inherited += [f"{base.__name__}.__init__" for base in _bases(cls) if _has_body(base, "__init__")]
        found += [f"{cls.__name__}: inherits {', '.join(inherited)}"] if inherited else []
    _assert_none(found)


def _nodes():
    """Every syntax node of the package, with its file."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path.relative_to(SOURCE).as_posix(), node


def test_nothing_calls_super():
    calls = [(path, node) for path, node in _nodes() if isinstance(node, ast.Call)]
    _assert_none([f"{path}:{node.lineno}" for path, node in calls if ast.unparse(node.func) == "super"])


def test_annotations_are_evaluated():
    imports = [(path, node) for path, node in _nodes() if isinstance(node, ast.ImportFrom)]
    _assert_none([path for path, node in imports if node.module == "__future__"])


def test_no_argument_or_field_that_is_a_string_chooses_what_is_computed():
    """Comparisons `x == "..."` and `x in ("...", ...)`, and `match` on a string, of a name that is not listed above.

    A mapping's key, `"..." in x` or `x["..."]`, is no choice; machines of other formats, with their opcodes, are none.
    """
    found = []
    for path, node in _nodes():
        if isinstance(node, ast.Compare):
            subject, others = node.left, node.comparators
            if isinstance(subject, ast.Constant) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                subject, others = others[0], [subject]
        elif isinstance(node, ast.Match):
            subject, others = node.subject, [case.pattern for case in node.cases]
        else:
            continue
        strings = [x for o in others for x in _strings(o)]
        name = subject.attr if isinstance(subject, ast.Attribute) else getattr(subject, "id", None)
        if strings and name is not None and name not in COMPARED:
            found.append(f"{path.split('/')[0]} {name}: compared with {strings} in {path}:{node.lineno}")
    _assert_none(found)


def _strings(node: ast.AST) -> list[str]:
    """The string constants that a value is compared with."""
    if isinstance(node, ast.MatchValue):
        return _strings(node.value)
    if isinstance(node, ast.MatchOr):
        return [x for pattern in node.patterns for x in _strings(pattern)]
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [x.value for x in parts if isinstance(x, ast.Constant) and isinstance(x.value, str)]


def test_keys_are_keyword_only():
    found = []
    for thing, name in public_objects().items():
        methods = vars(thing).items() if inspect.isclass(thing) else [("", thing)]
        for method, function in methods:
            public = not method.startswith("_") or method in ("__call__", "__init__")
            if public and inspect.isfunction(function) and not _made_of_fields(thing, method):
                key = inspect.signature(function).parameters.get("key")
                if key is not None and key.kind is not key.KEYWORD_ONLY:
                    found.append(f"{'.'.join(filter(None, [name.split('.')[-1], method]))}: `key` is positional")
    _assert_none(found)


def _made_of_fields(cls, method: str) -> bool:
    """Whether this is the `__init__` that the fields of a class make; a state has a key as it has parameters."""
    return method == "__init__" and not _has_body(cls, "__init__")
