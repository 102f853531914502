"""Make the section on accelerators of docs/results/speed.md from the files that `accelerator.py` wrote.

Prints it; `--write` puts it into the page. Run: `python benchmarks/accelerator_tables.py --write`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "accelerators"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "speed.md"
BEGIN, END = "<!-- begin: made by benchmarks/accelerator_tables.py -->\n", "<!-- end -->\n"
MISSING = """\
No accelerator was at hand so far: there is no figure from a GPU or a TPU yet. Everything above was measured on CPUs.
"""
COLUMNS = (
    *("model", "head", "ns per parameter", "`optax.adam`", "ratio", "GB/s", "of a copy"),
    *("temporary bytes per parameter", "trace s", "compile s"),
)
CAPTION = """
At jax's default precision of matrix products. GB/s counts the 44 bytes per parameter that an update must read and
write, and is compared with the rate at which the device copies an array.
"""


def section(folder: Path = FOLDER) -> str:
    """The Markdown for all devices with a folder of results in `folder`."""
    folders = sorted(path for path in folder.glob("*") if path.is_dir())
    return "\n".join("\n".join(device(path)) + "\n" for path in folders) or MISSING


def device(folder: Path) -> Iterator[str]:
    """The lines on one device."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if any(part["smoke"] for part in parts.values()):
        raise ValueError(f"{folder} holds a smoke test; measure without `--smoke`.")
    done = {name: part for name, part in parts.items() if "error" not in part}
    facts = {(p["device"], p["devices"], p["jax"], p["commit"]) for p in done.values()}
    for kind, number, jax, commit in sorted(facts, key=str):
        yield f"**{kind}**, number of devices: {number}; jax {jax}, commit {commit}.\n"
    if updates := {name: part for name, part in done.items() if name.startswith("update-")}:
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{' --- |' * len(COLUMNS)}"
        yield from (update(*part["rows"]) for part in updates.values())
        yield CAPTION
    for name, line in (("tests", tests), ("pes", pes), ("sharded", sharded), ("meta-training", meta_training)):
        if name in done:
            yield f"- {line(done[name]['rows'])}"
    if "shard-map" in done:
        difference = done["shard-map"]["rows"][0]["largest_relative_difference"]
        yield f"- Updates under `jax.shard_map` agree with those without it up to {difference:.1e} of the largest."
    for name, part in parts.items():
        if "error" in part:
            yield f"- The part `{name}` failed: {part['error'].splitlines()[0]}"


def update(adam: dict, row: dict) -> str:
    share = row["gb_per_second"] / row["copy_gb_per_second"]
    cells = (
        f"{row['model']}, {row['params'] / 1e6:.0f}M, {row['tensors']} tensors",
        row["optimizer"].removeprefix("small_fc_lopt "),
        f"{row['ns_per_param']:.3f}",
        f"{adam['ns_per_param']:.3f}",
        f"{row['ratio_to_adam']:.2f}",
        f"{row['gb_per_second']:,.0f}",
        f"{share:.0%}",
        f"{row['temp_bytes_per_param']:.1f}",
        f"{row['trace_seconds']:.1f}",
        f"{row['compile_seconds']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def tests(rows: list[dict]) -> str:
    row = rows[0]
    failed = ", ".join(f"`{name}`" for name in row["failed"]) or "none"
    return f"Tests on the device, products of matrices in {row['precision']}: {row['tests']}; failed: {failed}."


def pes(rows: list[dict]) -> str:
    row = rows[0]
    return (
        f"PES at the setting of muLO (width {row['width']}, batch {row['batch_size']}, {row['pairs']} pairs, "
        "head 32x2): "
        f"{row['steps_per_second']:,.0f} inner steps/s, first meta-step after {row['first_step_seconds']:.0f} s."
    )


def sharded(rows: list[dict]) -> str:
    one, every = rows
    return (
        f"Particles on one device: {one['steps_per_second']:,.0f} inner steps/s; sharded over {every['devices']}: "
        f"{every['steps_per_second']:,.0f}, with a meta-gradient that differs by {every['relative_difference']:.1e}."
    )


def meta_training(rows: list[dict]) -> str:
    first, last = rows[0], rows[-1]
    return (
        f"{last['step']} meta-steps on digits take {last['seconds']:.0f} s, compilation included; the loss goes from "
        f"{first['loss']:.3f} to {last['loss']:.3f}."
    )


def write(page: Path = PAGE) -> None:
    """Replace the section in the page."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + section() + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/results/speed.md")
    if parser.parse_args().write:
        write()
    else:
        print(section(), end="")
