"""The notebooks run, at small sizes, and contain the outputs of one complete run."""

import json
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# In place of the cell that is tagged "parameters".
SMALL = {
    "feature": "meta_steps, meta_seeds, horizon, num_seeds, rates = 2, 1, 20, 1, (1e-2,)",
    "meta_training": "meta_steps, horizon, num_seeds = 10, 40, 1",
    "pretrained_optimizer": "width, num_steps, num_seeds, rates = 32, 20, 1, (1e-2,)",
}


def _code_cells(name: str) -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


LONG = ("feature", "meta_training")  # CI runs them on their own


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in LONG else x for x in SMALL])
def test_notebook_runs(name, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(FOLDER)
    # A registered module, since dataclasses look up the module of the classes that a notebook defines.
    module = types.ModuleType(f"notebook_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cells = _code_cells(name)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    for i, cell in enumerate(cells):
        code = SMALL[name] if "parameters" in cell["metadata"].get("tags", []) else "".join(cell["source"])
        exec(compile(code, f"{name}.ipynb, cell {i + 1}", "exec"), vars(module))


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_one_complete_run(name):
    cells = _code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds and "display_data" in kinds


def test_navigation_lists_every_notebook():
    navigation = (FOLDER.parents[1] / "mkdocs.yml").read_text()
    assert all(f"notebooks/{name}.md" in navigation for name in SMALL)
