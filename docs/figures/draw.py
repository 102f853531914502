"""Draw the figures of the documentation from recorded numbers, for light and for dark pages; or record the numbers.

    python docs/figures/draw.py                                      # all figures
    python docs/figures/draw.py celo_phases                          # one of them
    python docs/figures/draw.py celo_phases examples/celo_phases.py  # run a script, and draw its figure

A script's figure is recorded as the arguments of its call of a function of `lo_components.plots`, in `NAME.json.gz`.
"""

import argparse
import gzip
import inspect
import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import matplotlib
import numpy as np
from matplotlib import style

import lo_components as loc

FOLDER = Path(__file__).parent
DRAWS = ("training_curves", "coordinate_checks", "transfer", "bias_and_variance")


def record(name: str, command: list[str]) -> None:
    """Run a script, and write the arguments of its plot to `NAME.json.gz`."""
    recorded: dict[str, Any] = {}

    def recorder(draws: str):
        function = getattr(loc.plots, draws)

        def replaced(*args, **kwargs):
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            recorded.update(draws=draws, arguments={k: v for k, v in arguments.items() if k != "path"})
            function(*args, **kwargs)

        return replaced

    folder = str(Path(command[0]).parent)
    with (
        mock.patch.multiple(loc.plots, **{draws: recorder(draws) for draws in DRAWS}),
        mock.patch.multiple(sys, argv=command, path=[folder, *sys.path[1:]]),
    ):
        runpy.run_path(command[0], run_name="__main__")
    words = shlex.join(["python", *("FOLDER" if os.path.isabs(word) else word for word in command)])
    versions = {"lo_components": loc.__version__, "jax": jax.__version__}
    content = {"command": re.sub(r" --out \S+", "", words), "versions": versions, **recorded}
    (FOLDER / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content, default=_plain).encode(), mtime=0))


def _plain(x: Any) -> Any:
    if isinstance(x, loc.meta.CoordinateCheck):
        return vars(x)
    return [_plain(y) for y in x] if np.ndim(x) else float(f"{x:.4g}")


def draw(name: str, folder: Path = FOLDER.parent / "assets") -> None:
    """Draw one figure on both backgrounds."""
    content = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    arguments = content["arguments"]
    if content["draws"] == "coordinate_checks":
        arguments["checks"] = {
            title: loc.meta.CoordinateCheck(tuple(x["widths"]), tuple(x["layers"]), np.asarray(x["changes"]))
            for title, x in arguments["checks"].items()
        }
    elif "panels" in arguments:
        arguments["panels"] = {
            title: {line: np.asarray(values) for line, values in panel.items()}
            for title, panel in arguments["panels"].items()
        }
    for scheme, look in {"light": "default", "dark": "dark_background"}.items():
        path = folder / f"{name}-{scheme}.svg"
        # The same numbers give the same file.
        with style.context(look), matplotlib.rc_context({"svg.hashsalt": name}):
            getattr(loc.plots, content["draws"])(path=path, **arguments)
        text = re.sub(r" <metadata>.*</metadata>\n", "", path.read_text(), flags=re.DOTALL)
        path.write_text(re.sub(r"\b[1-9]\d*\.\d{3,}", lambda number: f"{float(number[0]):.1f}", text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the figure (default: all)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script with its arguments, to record")
    args = parser.parse_args()
    if args.command:
        record(args.name, args.command)
    recorded = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))
    for name in [args.name] if args.name else recorded:
        draw(name)
