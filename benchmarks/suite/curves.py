"""Smoothed curves of many runs in one npz file, such as the baselines that the repository has."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

import lo_components as loc

from . import scores
from .runs import Run

BASELINES = Path(__file__).parents[1] / "results" / "suite" / "baselines.npz"
Key = tuple[str, str, int]  # optimizer, task, number of steps
Definition = UInt8[np.ndarray, "32"]  # a hash of a task with its data


@dataclasses.dataclass(frozen=True)
class Curves:
    """What is kept of the runs of one optimizer on one task.

    **Arguments:**

    - `curve`: the smoothed training losses.
    - `before`: the losses before the first step.
    - `held_out`: the held-out loss after each tenth of the steps.
    - `rate`: the learning rate.
    """

    curve: Float[np.ndarray, "seeds points"]
    before: Float[np.ndarray, " seeds"]
    held_out: Float[np.ndarray, "seeds measurements"]
    rate: float

    @staticmethod
    def of(run: Run) -> "Curves":
        """The curves of finished runs."""
        return Curves(scores.smoothed(run.losses), run.losses[:, 0], run.held_out, run.rate)


def write(path: Path, curves: Mapping[Key, Curves], definitions: Mapping[str, Definition]) -> None:
    """Write curves in float32, with the definitions of their tasks."""
    arrays = {f"definition|{task}": found for task, found in definitions.items()}
    for (name, task, horizon), found in curves.items():
        for field in dataclasses.fields(found):
            value = np.atleast_1d(np.asarray(getattr(found, field.name), np.float32))
            arrays[f"{name}|{task}|{horizon}|{field.name}"] = value
    loc.weights.write_arrays(path, arrays)


def read(path: Path, definitions: Mapping[str, Definition] | None = None) -> dict[Key, Curves]:
    """Read the curves of all tasks, or of those with these definitions; a file that does not exist has none."""
    if not path.exists():
        return {}
    fields: dict[Key, dict] = {}
    arrays = loc.weights.read_arrays(path)
    stored = {key.removeprefix("definition|"): arrays.pop(key) for key in list(arrays) if key.startswith("definition|")}
    for key, array in arrays.items():
        name, task, *rest = key.split("|")
        if definitions is not None and not np.array_equal(definitions.get(task, ()), stored.get(task, ())):
            continue
        horizon, field = rest
        value = float(f"{array[0]:.6g}") if field == "rate" else array.astype(np.float64)
        fields.setdefault((name, task, int(horizon)), {})[field] = value
    return {key: Curves(**found) for key, found in fields.items()}
