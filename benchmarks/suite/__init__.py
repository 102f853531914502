"""Ten small tasks on real data, on which any optimizer is compared with baselines that were tuned on each of them.

```python
from benchmarks import suite

report = suite.run(lambda rate, horizon: optax.lion(rate), rates=(1e-4, 3e-4, 1e-3), data="DATA", out="OUT")
```

See `docs/suite.md`, and `python -m benchmarks.suite --help`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from . import curves, scores
from .curves import Curves as Curves
from .optimizers import BASELINES as BASELINES
from .optimizers import Learner, Rate
from .optimizers import Optimizer as Optimizer
from .report import Report as Report
from .runs import Setting, run_all
from .tasks import TASKS as TASKS
from .tasks import Growth as Growth

HORIZONS = (1000, 5000)


def run(
    *optimizers: Optimizer | Learner | Callable[[Rate, int], Learner],
    data: str | Path,
    out: str | Path,
    name: str = "mine",
    rates: Sequence[float] = (1.0,),
    growth: Growth = Growth(),
    tasks: Sequence[str] = tuple(TASKS),
    horizons: Sequence[int] = HORIZONS,
    seeds: int = 3,
    tuning_seeds: int = 1,
    jobs: int = 1,
    over: str | None = None,
    baselines: Path = curves.BASELINES,
) -> Report:
    """Run optimizers on the tasks, and compare them with the baselines. An interrupted call continues where it was.

    **Arguments:**

    - `optimizers`: each an `Optimizer`, an optimizer of this library, an optax transformation, or a function from a
        learning rate and the number of steps to one of them. Without any, the baselines run.
    - `data`: the folder of data, see `data.py`.
    - `out`: the folder for tables, scores, the figure, the curves, and all runs.
    - `name`, `rates`, `growth`: those of the optimizers that are not an `Optimizer`. A single rate is not tuned.
    - `tasks`, `horizons`: names of tasks, and numbers of steps.
    - `seeds`, `tuning_seeds`: runs that decide the scores, and runs for each rate of a grid.
    - `jobs`: how many runs at once, each on one core.
    - `over`: an optimizer with which all others are compared seed by seed.
    - `baselines`: a file with curves of the baselines. Those that it does not have for this number of seeds and for
        equal data are run.

    **Returns:** the curves with their scores and tables, which are in `out` as well.

    Raises `ValueError` if a horizon cannot be cut into equal parts, if two optimizers have the same name, or if there
    is none called `over`.
    """
    uneven = [h for h in horizons if h > scores.POINTS and h % scores.POINTS]
    if uneven:
        raise ValueError(f"`horizons` above {scores.POINTS} must be multiples of it, got {uneven[0]}.")
    setting = Setting(Path(data).expanduser(), Path(out).expanduser(), seeds, tuning_seeds)
    own = [Optimizer.of(x, name, tuple(rates), growth) for x in optimizers]
    names = [o.name for o in own]
    if len(set(names)) < len(names) or set(names) & set(BASELINES):
        raise ValueError(f"Each optimizer needs a name of its own, got {names}; pass an `Optimizer` or `name`.")
    if over is not None and over not in (*BASELINES, *names):
        raise ValueError(f"`over` must be one of {(*BASELINES, *names)}, got {over!r}.")
    definitions = {task: TASKS[task].digest(setting.data) for task in tasks}
    known = {
        (name, task, horizon): found
        for (name, task, horizon), found in curves.read(baselines, definitions).items()
        if name in BASELINES and horizon in horizons and len(found.curve) == seeds
    }
    missing = [b for b in BASELINES.values() if any((b.name, t, h) not in known for t in tasks for h in horizons)]
    found = run_all(setting, [*missing, *own], tasks, horizons, jobs)
    everything = known | {key: Curves.of(result) for key, result in found.items()}
    ordered = {(name, t, h): everything[name, t, h] for h in horizons for t in tasks for name in (*BASELINES, *names)}
    report = Report(ordered)
    report.write(setting.out, over)
    curves.write(setting.out / "curves.npz", ordered, definitions)
    return report
