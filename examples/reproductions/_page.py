"""Make tables of the documentation from the results that there are: claims with verdicts, and rounds.

Prints them; `--write` puts them into the pages. To add results, copy `results.json` of a script's folder to
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
from _results import described, middle, shown
from _tasks import STAND_INS

FOLDER = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- begin: made by examples/reproductions/_page.py -->\n", "<!-- end -->\n"
NOT_ATTEMPTED = "Not attempted"
SAME = "H = 4"  # the panel of `lagg_rounds.py` that is as in meta-training


def verdicts(folder: Path = FOLDER) -> str:
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


def rounds(folder: Path = FOLDER) -> str:
    """The Markdown of the rounds that aggregators take: on the task of meta-training, and elsewhere."""
    content = load(folder / "lagg_rounds.json")
    same, *others = content["results"]
    return (
        "\n".join([*rounds_of_one(content["results"][same]), "", *rounds_elsewhere(content["results"], others)]) + "\n"
    )


def rounds_of_one(of: dict[str, Any]) -> Iterator[str]:
    """Medians (lowest to highest) of the rounds to final losses of baselines, and of the final loss."""
    targets = [name for name in ("local SGD", "SlowMo", "outer Nesterov", "outer Muon") if name in of["rounds_to"]]
    losses = [f"to the loss of {name} ({middle(of['optimizers'][name]['final']):.4f})" for name in targets]
    yield f"| | {' | '.join(losses)} | loss after {of['steps']:,} rounds |"
    yield f"| --- |{' --- |' * (len(targets) + 1)}"
    for name, found in of["optimizers"].items():
        cells = [described(of["rounds_to"][target][name], ".0f", "never") for target in targets]
        yield f"| {name} | {' | '.join([*cells, described(found['final'], '.3f')])} |"


def rounds_elsewhere(results: dict[str, Any], panels: list[str]) -> Iterator[str]:
    """Median rounds to the final loss of SlowMo, and median final losses."""
    titles = [f"{panel}, {results[panel]['steps']} rounds" for panel in panels]
    yield f"| | {' | '.join(titles)} |"
    yield f"| --- |{' --- |' * len(panels)}"
    for name in dict.fromkeys(name for panel in panels for name in results[panel]["optimizers"]):
        found = [results[panel] for panel in panels]
        cells = [
            f"{shown(middle(of['rounds_to']['SlowMo'][name]), '.0f', 'never')}, "
            f"{shown(middle(of['optimizers'][name]['final']), '.3f')}"
            if name in of["optimizers"]
            else ""
            for of in found
        ]
        yield f"| {name} | {' | '.join(cells)} |"


PAGES = {DOCS / "reproductions.md": verdicts, DOCS / "results" / "communication.md": rounds}


def with_tables(page: str, tables: str) -> str:
    """The page with these tables between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + tables + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into the pages")
    writes = parser.parse_args().write
    for page, make in PAGES.items():
        if writes:
            page.write_text(with_tables(page.read_text(), make()))
        else:
            print(make(), end="")
