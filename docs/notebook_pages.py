"""A hook of MkDocs: each notebook becomes a page, with the outputs that it contains. Nothing is executed."""

import json
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a Markdown file for each notebook, whose links are then checked like those of any page."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        content = f"{markdown(json.loads(file.content_string))}\n\n[This page as a notebook]({file.name}.ipynb)\n"
        files.append(File.generated(config, page, content=content))
    return files


def markdown(notebook: dict) -> str:
    return "\n\n".join(block for cell in notebook["cells"] for block in _blocks(cell))


def _blocks(cell: dict) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source.replace(".ipynb)", ".md)")
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![Figure](data:image/png;base64,{data['image/png'].strip()})"
        else:
            yield f"```text\n{''.join(output.get('text', data.get('text/plain', []))).rstrip()}\n```"
