"""Test and measure the library on the devices of this machine, in at most 20 minutes.

Each part of `accelerator_parts.py` is a process of its own, which writes `FOLDER/PART.json`. A part that fails, or
takes too long, leaves its error there, and the next part runs. The same command again skips parts that are done and
repeats those that failed, so a measurement may be interrupted. On the machine with the accelerator run

    python benchmarks/accelerator.py --out benchmarks/results/accelerators/NAME
    python benchmarks/accelerator_tables.py --write

The second command writes the figures into docs/results/speed.md. `--smoke` tries each kind of part at tiny
sizes, also on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from report import save, write

# Compilation is limited too: the largest model has 292 tensors.
PART_SECONDS = 240


def run_part(part: str, out: Path, smoke: bool) -> int:
    """Run one part in this process; the exit status."""
    from accelerator_parts import parts

    begin = time.perf_counter()
    try:
        rows = parts(smoke)[part](smoke)
    except Exception as error:
        traceback.print_exc()
        write(out / f"{part}.json", [], smoke=smoke, error=f"{type(error).__name__}: {error}"[:2000])
        return 1
    write(out / f"{part}.json", rows, smoke=smoke, seconds=time.perf_counter() - begin)
    return 0


def run_apart(part: str, out: Path, smoke: bool, seconds: float) -> str | None:
    """Run one part in a process of its own; its error, if it fails."""
    path = out / f"{part}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--out", str(out), "--part", part, *["--smoke"] * smoke]
    # Most of the time of a smoke test goes into compiling programs that run for milliseconds.
    environment = {**os.environ, **({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if smoke else {})}
    try:
        status = subprocess.run(command, env=environment, timeout=seconds).returncode
        error = f"The process ended with status {status}."
    except subprocess.TimeoutExpired:
        status, error = None, f"The part was stopped after {seconds:.0f} s."
    if status != 0 and not path.exists():
        save(path, {"smoke": smoke, "error": error, "rows": []})
    return json.loads(path.read_text()).get("error")


def done(path: Path, smoke: bool) -> bool:
    """Whether there is a result, of this size, that is no error."""
    content = json.loads(path.read_text()) if path.exists() else {"error": "missing"}
    return "error" not in content and content["smoke"] == smoke


def main(out: Path, names: list[str], minutes: float, smoke: bool) -> int:
    """Run the parts that are not done; 0 if all of them are afterwards."""
    deadline = time.monotonic() + 60 * minutes
    # What failed before comes last.
    for number, part in enumerate(sorted(names, key=lambda part: (out / f"{part}.json").exists()), 1):
        label = f"[{number}/{len(names)}] {part}"
        left = deadline - time.monotonic()
        if done(out / f"{part}.json", smoke):
            print(f"{label}: done before", flush=True)
        elif left < 5:
            print(f"{label}: no time is left; the same command again continues", flush=True)
        else:
            print(f"{label}: {left / 60:.1f} minutes left", flush=True)
            begin = time.monotonic()
            error = run_apart(part, out, smoke, min(left, PART_SECONDS))
            print(f"{label}: {f'failed: {error}' if error else 'done'} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0 if all(done(out / f"{part}.json", smoke) for part in names) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these; by default all")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test of this script")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        sys.exit(run_part(arguments.part, arguments.out, arguments.smoke))
    from accelerator_parts import parts

    names = list(parts(arguments.smoke))
    if unknown := set(arguments.parts or ()) - set(names):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    sys.exit(main(arguments.out, arguments.parts or names, arguments.minutes, arguments.smoke))
