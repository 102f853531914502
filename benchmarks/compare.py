"""Compare the speed of two commits: run benchmarks with the library of each in turn, and print ratios.

The benchmarks themselves are those beside this file, for both commits, so an old commit need not have them. Each run is
a process of its own; the order is before, after, before, after, and so on. A ratio is the median over pairs of runs of
after / before, with the smallest and the largest. Rows of `optax.adam`, which is the same in both commits, show how
much ratios vary by themselves. Run: `python benchmarks/compare.py BEFORE [AFTER]`; without `AFTER`, the library is that
of the working tree.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("update", "pes", "layers")
# The columns that say what was measured; numbers are in the others.
NAMES = ("setting", "model", "optimizer")


def check_out(commit: str, folder: Path) -> Path:
    """Write the library as of `commit` into `folder`; the folder to import it from."""
    command = ["git", "archive", commit, "src"]
    result = subprocess.run(command, cwd=FOLDER.parent, capture_output=True)
    if result.returncode:
        sys.exit(f"There is no commit {commit!r} here; name another one, or fetch more of the history.")
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def measure(benchmark: str, source: Path, quick: bool) -> list[dict]:
    """The rows of one run of a benchmark with the library in `source`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(FOLDER / f"{benchmark}.py"), "--out", str(out), *["--quick"] * quick]
        path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
        result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{benchmark}.py failed with the library in {source}:\n{result.stderr}")
        return json.loads(out.read_text())["rows"]


def table(before: list[list[dict]], after: list[list[dict]]) -> Iterator[str]:
    """A line for each measure of each row, from the rows of several pairs of runs."""
    yield f"{'':<36}{'measure':<22}{'before':>11}{'after':>11}   after / before"
    for rows in zip(*before, *after, strict=True):
        name = ", ".join(str(rows[0][column]) for column in NAMES if column in rows[0])
        olds, news = rows[: len(before)], rows[len(before) :]
        for column in (column for column, value in rows[0].items() if isinstance(value, float)):
            old, new = [r[column] for r in olds], [r[column] for r in news]
            ratios = [n / o if o else float("nan") for o, n in zip(old, new, strict=True)]
            yield (
                f"{name:<36}{column:<22}{statistics.median(old):>11.4g}{statistics.median(new):>11.4g}"
                f"{statistics.median(ratios):>9.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def main(before: str, after: str | None, benchmarks: list[str], pairs: int, quick: bool):
    with tempfile.TemporaryDirectory() as folder:
        sources = [
            check_out(before, Path(folder) / "before"),
            FOLDER.parent / "src" if after is None else check_out(after, Path(folder) / "after"),
        ]
        for benchmark in benchmarks:
            print(f"{benchmark}: {before} against {after or 'the working tree'}, {pairs} runs of each", flush=True)
            runs = [[measure(benchmark, source, quick) for source in sources] for _ in range(pairs)]
            print("\n".join(table(*map(list, zip(*runs, strict=True)))), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="a commit; by default the working tree")
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--pairs", type=int, default=3, help="how often each commit runs")
    parser.add_argument("--quick", action="store_true", help="the short form of each benchmark")
    main(**vars(parser.parse_args()))
