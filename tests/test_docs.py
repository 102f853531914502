"""The documentation runs, and its API pages list every public name."""

import gzip
import importlib
import re
import runpy
import sys
import types
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SOURCE = ROOT / "src" / "lo_components"
PACKAGES = sorted([p.parent.name for p in SOURCE.glob("[!_]*/__init__.py")] + [p.stem for p in SOURCE.glob("[!_]*.py")])

_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL
)
_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)\n(?P<options>(?:    .*\n)*)", re.MULTILINE)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path) -> list[str]:
    """The page's Python blocks, each behind as many empty lines as make tracebacks show the page's own line numbers."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, m.start("code")) + _dedent(m) for m in _BLOCK.finditer(text)]


def _dedent(match: re.Match) -> str:
    indent = match["indent"]
    return "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=_name)
def test_page_runs(page, tmp_path, monkeypatch):
    # A registered module, since dataclasses look up the module of the classes that a page defines.
    module = types.ModuleType(f"docs_{page.stem.replace('-', '_').lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    # Optax's Adam mixes integers and floats, so pages run under the promotion that their readers have.
    with jax.numpy_dtype_promotion("standard"):
        for block in _blocks(page):
            exec(compile(block, _name(page), "exec"), vars(module))


def test_every_python_fence_is_found():
    """A fence that the pattern misses would never run."""
    for page in PAGES:
        assert len(_blocks(page)) == len(re.findall(r"^[ \t]*(?:```|~~~)[ \t]*(?:python|py)\b", page.read_text(), re.M))


def _directives(package: str) -> dict[str, list[str]]:
    """The names on a package's API page, with the members that each lists."""
    text = (DOCS / "api" / f"{package}.md").read_text() + "\n"
    return {m["name"]: re.findall(r"^        - (\w+)$", m["options"], re.MULTILINE) for m in _DIRECTIVE.finditer(text)}


def _public_names(package: str) -> set[str]:
    return _public(importlib.import_module(f"lo_components.{package}"))


def _public(module: types.ModuleType) -> set[str]:
    """What a package re-exports, or what a module defines."""
    names = {n for n, x in vars(module).items() if not n.startswith("_") and not isinstance(x, types.ModuleType)}
    if hasattr(module, "__path__"):
        return names
    return {n for n in names if getattr(vars(module)[n], "__module__", None) == module.__name__}


@pytest.mark.parametrize("package", PACKAGES)
def test_api_page_lists_the_public_names(package):
    prefix = f"lo_components.{package}"
    listed = set(_directives(package)) - {prefix}
    assert listed == {f"{prefix}.{name}" for name in _public_names(package)}


@pytest.mark.parametrize("package", PACKAGES)
def test_api_page_lists_the_members(package):
    """The methods and properties that a class adds to those of the abstract classes above it are on its page."""
    for name, members in _directives(package).items():
        if name == f"lo_components.{package}":
            continue
        thing = getattr(importlib.import_module(f"lo_components.{package}"), name.rpartition(".")[2])
        assert all(hasattr(thing, member) for member in members), name
        if isinstance(thing, type):
            assert _own_members(thing) <= set(members), name


def _own_members(cls: type) -> set[str]:
    fields = getattr(cls, "__annotations__", {})
    inherited = {n for base in cls.__mro__[1:] for n in (*vars(base), *getattr(base, "__annotations__", {}))}
    return {
        name
        for name, member in vars(cls).items()
        if (isinstance(member, property) or (callable(member) and not isinstance(member, type)))
        and (not name.startswith("_") or name == "__call__")
        and name not in inherited
        and name not in fields
    }


def test_top_level_names_are_on_api_pages():
    """The package's own namespace repeats names of its subpackages; two pages have the others."""
    names = _public(importlib.import_module("lo_components"))
    others = {name.rpartition(".")[2] for page in ("learner", "pretrained") for name in _directives(page)}
    assert others == names - {name for package in PACKAGES for name in _public_names(package)}


def test_navigation_lists_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob("*.md"))]
    pages += [f"examples/{p.stem}.md" for p in (ROOT / "examples").glob("*.py")]
    assert [page for page in pages if page not in navigation] == []


@pytest.mark.parametrize("name", [p.name.split(".")[0] for p in sorted((DOCS / "figures").glob("*.json.gz"))])
def test_recorded_figure_is_drawn_for_light_and_dark_pages(name):
    for scheme in ("light", "dark"):
        assert 5_000 < (DOCS / "assets" / f"{name}-{scheme}.svg").stat().st_size < 150_000


def test_figures_are_recorded_and_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    script = tmp_path / "script.py"
    curves = f"{{'': {{'Adam': np.ones((1, 30))}}}}, {str(tmp_path / 'figure.svg')!r}"
    script.write_text(f"import numpy as np\nimport lo_components as loc\nloc.plots.training_curves({curves})\n")
    tool = runpy.run_path(str(DOCS / "figures" / "draw.py"))
    monkeypatch.setitem(tool["draw"].__globals__, "FOLDER", tmp_path)
    tool["record"]("mine", [str(script), "--data", "/a/folder", "--out", "/mine"])
    tool["draw"]("mine", tmp_path)
    assert '"python FOLDER --data FOLDER"' in gzip.decompress((tmp_path / "mine.json.gz").read_bytes()).decode()
    assert (tmp_path / "figure.svg").exists() and (tmp_path / "mine-light.svg").exists()
    assert "#ffffff" in (tmp_path / "mine-dark.svg").read_text()


# What a browser fetches without a click: sources, stylesheets, images of Markdown, fonts, entries of `extra_*`.
_FETCHED = re.compile(
    r"""(?:\bsrc\s*=|<link\b[^>]*\bhref\s*=|!\[[^\]]*\]\(|\burl\(|@import|^\s*-)[\s\\"']*(?:https?:)?//""", re.MULTILINE
)


def test_pages_need_no_other_host():
    """MathJax is not scanned, since it names hosts of parts that are not used; `browser.py` sees what it requests."""
    suffixes = {".css", ".html", ".ipynb", ".js", ".md", ".svg"}
    files = [p for p in DOCS.rglob("*") if p.suffix in suffixes and "mathjax-" not in p.parent.name]
    found = [_name(p) for p in [ROOT / "mkdocs.yml", *files, *SOURCE.rglob("*.py")] if _FETCHED.search(p.read_text())]
    assert found == []
    assert "\n  font: false\n" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js">',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "![figure](https://example.org/a.png)",
        'url("https://example.org/a.woff")',
        "extra_javascript:\n  - https://example.org/a.js",
    ],
)
def test_resources_of_other_hosts_are_recognized(text):
    assert _FETCHED.search(text)
    assert not _FETCHED.search("[link](https://example.org)")
