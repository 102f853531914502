"""The version is the same wherever it is written."""

import re
import tomllib
from pathlib import Path

import lo_components as loc

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_package_has_the_version_of_the_project():
    assert loc.__version__ == VERSION


def test_the_newest_section_of_the_changelog_is_the_version_to_cite():
    changelog, citation = (ROOT / "CHANGELOG.md").read_text(), (ROOT / "CITATION.cff").read_text()
    sections = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    cited = re.findall(r"^(?:version|date-released): (.*)$", citation, re.MULTILINE)
    assert sections[:2] == ["Unreleased", " - ".join(cited)]
    assert cited[0] == VERSION
