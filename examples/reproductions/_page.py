"""Make the tables of docs/reproductions.md from the claims, and from the results that there are.

Prints them; `--write` puts them into the page. To add results, copy `results.json` of a script's folder to
`results/NAME_OF_THE_SCRIPT.json` in this folder. Run: `python examples/reproductions/_page.py --write`.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _claims import CLAIMS, Claim
from _optimizers import LABELS
from _tasks import STAND_INS

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "reproductions.md"
BEGIN, END = "<!-- begin: made by examples/reproductions/_page.py -->\n", "<!-- end -->\n"
NOT_ATTEMPTED = "Not attempted"


def section(folder: Path = FOLDER) -> str:
    """The Markdown of all claims, by paper and script."""
    found = {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
    lines = []
    for paper, of_paper in itertools.groupby(CLAIMS, lambda claim: claim.paper):
        lines.append(f"\n## {paper}\n")
        claims = list(of_paper)
        scripts = list(dict.fromkeys(claim.script for claim in claims))
        for script in sorted(scripts, key=lambda script: not script):  # those without one last
            some = [claim for claim in claims if claim.script == script]
            lines += part(script, some, found.get(script.removesuffix(".py")))
    return "\n".join(lines)[1:] + "\n"


def load(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if content["settings"]["smoke"] or content["settings"]["data"] == STAND_INS:
        raise ValueError(f"{path} holds a smoke test, or results without `--data`.")
    return content


def part(script: str, claims: list[Claim], content: dict[str, Any] | None) -> Iterator[str]:
    """The lines on one script, or on the claims without one."""
    yield f"### `{script}`\n" if script else f"### {NOT_ATTEMPTED}\n"
    if content is None:
        yield "| figure | claim |"
        yield "| --- | --- |"
        yield from (f"| {claim.figure} | {claim.says} |" for claim in claims)
    else:
        versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        yield f"`{content['command']}` ({versions}).\n"
        yield f"{scale(content)}\n"
        yield "| figure | claim | measured here | verdict |"
        yield "| --- | --- | --- | --- |"
        for claim in claims:
            text, verdict = measured(claim, content["results"])
            yield f"| {claim.figure} | {claim.says} | {text} | {verdict} |"
    yield ""


def scale(content: dict[str, Any]) -> str:
    """How many seeds and steps, and what was tuned."""
    groups = content["results"]
    nested = groups if "figure" in next(iter(groups)) else {"": groups}
    steps = [
        f"{f'{figure}, ' if figure else ''}{panel} {of['steps']}"
        for figure, panels in nested.items()
        for panel, of in panels.items()
        if "steps" in of
    ]
    counted = f" Steps or rounds: {'; '.join(steps)}." if steps else ""
    names = {"rate": "rate", "input_mult": "input", "output_mult": "output", "hidden_mult": "hidden"}
    tuned = [
        f" {LABELS[optimizer]}: " + ", ".join(f"{name} {found[key]:g}" for key, name in names.items()) + "."
        for optimizer, found in groups.get("table 2", {}).items()
    ]
    return f"{content['settings']['seeds']} seeds.{counted}{''.join(tuned)}"


def measured(claim: Claim, results: dict[str, Any]) -> tuple[str, str]:
    """What was measured about a claim, and the verdict."""
    pairs = list(claim.measure(results)) if claim.measure else []
    agree = [agrees for _, agrees in pairs]
    verdict = "reproduced" if all(agree) else "partly" if any(agree) else "not reproduced"
    return "<br>".join(text for text, _ in pairs), verdict if pairs else NOT_ATTEMPTED.lower()


def write(page: Path = PAGE) -> None:
    """Replace the section in the page."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + section() + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into docs/reproductions.md")
    if parser.parse_args().write:
        write()
    else:
        print(section(), end="")
