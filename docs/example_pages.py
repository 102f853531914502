"""A hook of MkDocs: each script in `examples/` becomes a page with its docstring, its figure and its source."""

import ast
import gzip
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a Markdown file for each script, and the script."""
    titles = {path: title for title, path in _entries(config.nav)}
    for script in sorted((ROOT / "examples").glob("*.py")):
        page = f"examples/{script.stem}.md"
        content = markdown(script, titles.get(page, script.name))
        files.append(File.generated(config, page, content=content))
        # Included, although `exclude_docs` has the scripts of the documentation itself.
        path = f"examples/{script.name}"
        files.append(File.generated(config, path, abs_src_path=str(script), inclusion=InclusionLevel.INCLUDED))
    return files


def _entries(nav) -> Iterator[tuple[str, str]]:
    """Titles and paths of all pages of the navigation."""
    for section in nav:
        for title, entry in section.items():
            if isinstance(entry, str):
                yield title, entry
            else:
                yield from _entries(entry)


def markdown(script: Path, title: str) -> str:
    source = script.read_text()
    doc = ast.get_docstring(ast.parse(source)) or ""
    commands = re.sub(r"(?m)(?:^    .*\n)+", lambda m: f"```sh\n{textwrap.dedent(m[0])}```\n", doc + "\n")
    head = f"---\nsearch:\n  boost: 0.5\n---\n# {title}"  # searches for a name find its reference before its uses
    parts = [head, commands, *_figure(script.stem, doc.split("\n", 1)[0].rstrip("."))]
    code = textwrap.indent(f'```{{.python data-search-exclude=""}}\n{source}```', "    ")
    parts += [f'??? example "Source"\n\n{code}', f"[Download `{script.name}`]({script.name})"]
    return "\n\n".join(parts) + "\n"


def _figure(name: str, alt: str) -> Iterator[str]:
    """The figure of a script, if its numbers are recorded, for light and dark pages."""
    recorded = ROOT / "docs" / "figures" / f"{name}.json.gz"
    if recorded.exists():
        yield "\n".join(f"![{alt}](../assets/{name}-{scheme}.svg#only-{scheme})" for scheme in ("light", "dark"))
        yield f"The figure is from `{json.loads(gzip.decompress(recorded.read_bytes()))['command']}`."
