import ast
import json
import re

import pytest
from helpers import SOURCE, run_python

CONTRIBUTING = SOURCE.parents[1] / "CONTRIBUTING.md"

# Each package may import those of the lines above it, and itself.
_ORDER = re.search(r"## Direction of dependencies.*?```\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
LAYERS = [set(line.split(", ")) for line in _ORDER[1].splitlines()]
SHARED = {name for name in set().union(*LAYERS) if name.startswith("_")}


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
        "msgpack",
        "huggingface_hub",
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


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_package_files_only_re_export(path):
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        re_export = isinstance(node, ast.ImportFrom) and all(a.asname == a.name for a in node.names)
        version = isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
        assert docstring or re_export or version, ast.unparse(node)
