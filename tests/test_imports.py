import ast
import importlib
import inspect
import json
import pkgutil

import pytest
from helpers import SOURCE, run_python

# Each package may import those of the lines above it, and itself.
LAYERS = [
    {"_atomic", "_description", "_tree", "_types"},
    {"accumulators", "parametrization", "data", "weights"},
    {"features", "nn"},
    {"heads", "steps", "tasks"},
    {"optimizers"},
    {"aggregators"},
    {"unroll"},
    {"estimators"},
    {"recipes"},
    {"interop"},
    {"meta"},
    {"plots", "sharding"},
]
SHARED = {"_atomic", "_description", "_tree", "_types"}


def _imports(path):
    """The modules of the package that a file imports, as dotted paths below the package, inside functions too."""
    package = ("lo_components", *path.relative_to(SOURCE).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("lo_components."):
                yield name.removeprefix("lo_components.")


def _owner(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def test_every_package_has_its_place_in_the_order():
    assert {_owner(p) for p in FILES} == set().union(*LAYERS)


def test_packages_import_only_what_comes_before_them():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        (str(path.relative_to(SOURCE)), name)
        for path in FILES
        for name in _imports(path)
        if name.split(".")[0] != _owner(path) and not rank[name.split(".")[0]] < rank[_owner(path)]
    ]
    assert wrong == []


def test_packages_do_not_import_each_others_private_files():
    found = {
        (_owner(path), ".".join(name.split(".")[:2]))
        for path in FILES
        for name in _imports(path)
        if name.split(".")[0] not in SHARED | {_owner(path)} and any(part.startswith("_") for part in name.split("."))
    }
    assert found == set()


def test_nothing_private_of_jax_is_imported():
    for path in FILES:
        assert "jax._src" not in path.read_text(), path


def test_importing_the_package_needs_neither_extras_nor_what_is_used_in_few_places():
    unwanted = [
        "sklearn",
        "matplotlib",
        "safetensors",
        "tqdm",
        "grain",
        "sentencepiece",
        "PIL",
        "pandas",
        "torch",
        "tensorflow",
    ]
    code = f"""
import json, pickle, sys
import jax, equinox, optax, jaxtyping, beartype
before = set(sys.modules)
def refuse(*args, **kwargs):
    raise AssertionError("pickle was used")
pickle.load = pickle.loads = refuse
import lo_components
print(json.dumps(sorted((set(sys.modules) - before) & set({unwanted!r}))))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_no_file_of_the_package_unpickles():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text, path


def _public_modules():
    package = importlib.import_module("lo_components")
    modules = [package]
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            modules.append(importlib.import_module(f"lo_components.{info.name}"))
    return modules


def _public():
    """Every public class and function of the package, once, with the name it is found under."""
    objects = {}
    for module in _public_modules():
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", "").startswith("lo_components")
            if not name.startswith("_") and defined_here and (inspect.isclass(value) or inspect.isfunction(value)):
                objects[value] = f"{module.__name__}.{name}"
    return objects


def test_every_public_class_is_abstract_or_final():
    classes = [c for c in _public() if inspect.isclass(c)]
    assert len(classes) > 40
    for cls in classes:
        for parent in cls.__mro__[1:]:
            if parent.__module__.startswith("lo_components"):
                assert parent.__name__.startswith("Abstract"), f"{cls.__name__} inherits from {parent.__name__}"


def test_abstract_classes_cannot_be_instantiated_and_concrete_ones_miss_nothing():
    for cls in _public():
        if not inspect.isclass(cls):
            continue
        abstract = set(getattr(cls, "__abstractmethods__", ())) | set(getattr(cls, "__abstractvars__", ()))
        abstract |= set(getattr(cls, "__abstractclassvars__", ()))
        markers = {"AbstractStatistic"}  # names a family, demands nothing
        assert bool(abstract) == (cls.__name__.startswith("Abstract") and cls.__name__ not in markers), cls.__name__


def _documented_members(cls):
    for name, member in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def test_everything_public_has_a_docstring():
    missing = [
        name for value, name in _public().items() if not value.__doc__ or value.__doc__.startswith(f"{value.__name__}(")
    ]
    missing += [m.__name__ for m in _public_modules() if not m.__doc__]
    for value, name in _public().items():
        if inspect.isclass(value) and value.__name__.startswith("Abstract"):
            missing += [f"{name}.{member}" for member, fn in _documented_members(value) if not fn.__doc__]
    assert missing == []


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_package_files_only_re_export(path):
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        re_export = isinstance(node, ast.ImportFrom) and all(a.asname == a.name for a in node.names)
        version = isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
        assert docstring or re_export or version, ast.unparse(node)
