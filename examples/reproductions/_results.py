"""Results that survive a kill, and their summary in JSON."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lo_components as loc

WINDOW = 20  # losses are means over this number of steps


def kept(path: Path, identity: Any, compute: Callable[[], tuple[Mapping, Mapping]]) -> tuple[dict, dict]:
    """The arrays and facts in `path` if they have this identity; otherwise computed now, and saved atomically."""
    identity = json.loads(json.dumps(identity))
    if path.exists() and (found := loc.weights.card(path))["identity"] == identity:
        return loc.weights.read_arrays(path), found["facts"]
    begin = time.perf_counter()
    arrays, facts = compute()
    facts = {**facts, "seconds": round(time.perf_counter() - begin)}
    loc.weights.save_arrays(path, dict(arrays), metadata={"identity": identity, "facts": facts})
    return {name: np.asarray(array) for name, array in arrays.items()}, facts


def summary(losses: np.ndarray) -> dict[str, Any]:
    """Of losses `[seeds, steps]`: the first, the final and the lowest of each seed, and how many seeds diverged.

    The final and the lowest loss are means over 20 steps. A seed has diverged if a loss is not finite, or if its final
    loss is above its first.
    """
    losses = np.asarray(losses, np.float64)
    means = np.lib.stride_tricks.sliding_window_view(losses, min(WINDOW, losses.shape[1]), axis=1).mean(-1)
    first, final = losses[:, 0], means[:, -1]
    lowest = np.min(means, axis=1, where=np.isfinite(means), initial=np.inf)
    bounded = np.isfinite(losses).all(1) & (final <= first)
    numbers = {"first": first, "final": final, "lowest": lowest}
    return {name: [finite(x) for x in values] for name, values in numbers.items()} | {"diverged": int((~bounded).sum())}


def finite(number: float) -> float | None:
    """A number for JSON, with five digits; `None` if it is not finite."""
    return float(f"{number:.5g}") if np.isfinite(number) else None


def middle(values: list[float | None]) -> float:
    """The median over seeds; infinite if it is not finite."""
    return float(np.median([np.inf if x is None else x for x in values]))


def described(values: list[float | None], form: str = ".4f", lost: str = "diverged") -> str:
    """The median over seeds (lowest to highest); `lost` stands for what is not finite."""
    found = [np.inf if x is None else x for x in values]
    low, mid, high = (shown(x, form, lost) for x in (min(found), middle(values), max(found)))
    return low if low == high else f"{mid} ({low} to {high})"


def shown(value: float, form: str = ".4f", lost: str = "diverged") -> str:
    return f"{value:{form}}" if np.isfinite(value) else lost


def write(path: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write the results with the command and the settings, atomically. Folders in the command are not named."""
    words = ["FOLDER" if os.sep in word else word for word in sys.argv[1:]]
    content = {
        "script": Path(sys.argv[0]).name,
        "command": shlex.join(["python", f"examples/reproductions/{Path(sys.argv[0]).name}", *words]),
        "versions": {"lo_components": loc.__version__, "jax": jax.__version__},
        "settings": dict(settings),
        "results": dict(results),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)
