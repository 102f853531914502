"""The benchmarks that nobody runs every day: the one for accelerators, and the comparison of two commits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import accelerator  # noqa: E402
import accelerator_tables  # noqa: E402
import compare  # noqa: E402

PART = "update-mlp-4x2"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a device on which one part ran."""
    folder = tmp_path_factory.mktemp("accelerators") / "device"
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--smoke", "--out", str(folder), "--parts", PART]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return folder


def test_a_part_says_what_it_measured_and_where(measured):
    content = json.loads((measured / f"{PART}.json").read_text())
    assert {"jax", "commit", "platform", "device", "devices", "seconds"} <= set(content)
    adam, learned = content["rows"]
    assert adam["ratio_to_adam"] == 1
    assert learned["ns_per_param"] * learned["gb_per_second"] == pytest.approx(44)
    assert not list(measured.glob(".*"))


def test_parts_that_are_done_are_skipped_and_those_that_failed_run_again(measured, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(accelerator, "run_apart", lambda part, *_: ran.append(part))
    (tmp_path / f"{PART}.json").write_text((measured / f"{PART}.json").read_text())
    (tmp_path / "pes.json").write_text(json.dumps({"smoke": True, "error": "out of memory", "rows": []}))
    (tmp_path / "sharded.json").write_text(json.dumps({"smoke": False, "rows": []}))
    assert accelerator.main(tmp_path, [PART, "pes", "sharded", "tests"], minutes=1, smoke=True) == 1
    assert ran == ["tests", "pes", "sharded"]
    assert accelerator.main(tmp_path, [PART], minutes=1, smoke=True) == 0
    assert accelerator.main(tmp_path, ["tests"], minutes=0, smoke=True) == 1 and len(ran) == 3


def test_an_error_is_recorded_and_no_result_is_left(tmp_path):
    assert accelerator.run_part("no such part", tmp_path, smoke=True) == 1
    assert "no such part" in json.loads((tmp_path / "no such part.json").read_text())["error"]
    assert "stopped" in accelerator.run_apart("pes", tmp_path, smoke=True, seconds=0.1)
    assert "stopped" in json.loads((tmp_path / "pes.json").read_text())["error"]


def test_the_page_has_the_figures_of_the_results():
    section = accelerator_tables.BEGIN + accelerator_tables.section() + accelerator_tables.END
    assert section in accelerator_tables.PAGE.read_text(), "run `python benchmarks/accelerator_tables.py --write`"


def test_the_section_shows_figures_and_errors(measured, tmp_path):
    content = json.loads((measured / f"{PART}.json").read_text())
    folder = tmp_path / "accelerators" / "device"
    folder.mkdir(parents=True)
    (folder / "pes.json").write_text(json.dumps({"smoke": False, "error": "out of memory", "rows": []}))
    (folder / f"{PART}.json").write_text(json.dumps({**content, "smoke": False}))
    section = accelerator_tables.section(folder.parent)
    assert content["device"] in section and f"| {content['rows'][1]['ns_per_param']:.3f} |" in section
    assert "The part `pes` failed: out of memory" in section
    with pytest.raises(ValueError, match="smoke"):
        accelerator_tables.section(measured.parent)


def test_without_results_the_section_says_so(tmp_path):
    assert "no figure from a GPU" in accelerator_tables.section(tmp_path)


def test_ratios_are_medians_over_pairs_of_runs():
    runs = [[{"setting": "A", "tensors": 3, "seconds": x}] for x in (1.0, 2.0, 4.0)]
    _, line = compare.table(runs, [[{**rows[0], "seconds": 3.0}] for rows in runs])
    assert line.split()[:4] == ["A", "seconds", "2", "3"] and line.endswith(" 1.50 (0.75 to 3.00)")


def test_a_missing_commit_is_named(tmp_path):
    with pytest.raises(SystemExit, match="There is no commit 'no-such-commit' here"):
        compare.check_out("no-such-commit", tmp_path)
