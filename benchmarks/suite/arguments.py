"""The arguments that say which optimizers to run, for the command lines of the suite and of its anchor."""

import argparse
from pathlib import Path
from typing import Any

from lo_components.parametrization import SP, MuP

from .optimizers import Optimizer
from .tasks import Growth


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of optimizers, their rates and parametrization, and the folder of data."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data, see data.py")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1.0], help="learning rates; a single one is not tuned"
    )
    parser.add_argument(
        "--mup", action="store_true", help="train models under muP, with width 32 and 64 inputs as base"
    )
    parser.add_argument("--absolute", action="store_true", help="with --mup: the papers' convention, without a base")
    return parser


def pop_optimizers(arguments: dict[str, Any]) -> list[Optimizer]:
    """The optimizers that the parsed `arguments` name; what describes them is removed from there."""
    names, rates, mup, absolute = (arguments.pop(name) for name in ("optimizers", "rates", "mup", "absolute"))
    base = dict(base_width=None, base_in_size=None) if absolute else {}
    growth = Growth(MuP() if mup else SP(), **base)
    return [Optimizer.named(name, tuple(rates), growth) for name in names]
