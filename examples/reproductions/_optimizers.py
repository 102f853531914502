"""The compared optimizers: learned ones from files, muAdam tuned as in the paper, and references tuned on each task.

| name | optimizer | networks under |
| --- | --- | --- |
| `mulo_s`, `mulo_m` | muLO, meta-trained at one width and at several | muP |
| `lo_s`, `lo_m` | the same under SP | SP |
| `mulo_m_decayed`, `lo_m_decayed` | the same optimizers, updates scaled from 1 to 0 over training | as above |
| `adam_s`, `adam_m` | Adam, whose rate and three multipliers are tuned on the same tasks | muP |
| `adam_cosine` | Adam with cosine decay, whose rate is tuned on each task | SP |
| `celo`, `celo2` | published weights; Celo2 with cosine decay, whose rate is tuned on each task | SP |
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _results import kept
from _tasks import images, kind_of, mlp

import lo_components as loc
from lo_components.optimizers import Matrices, Partitioned, Scheduled
from lo_components.parametrization import SP, MuP
from lo_components.schedules import OptaxSchedule
from lo_components.unroll import GradientStep

LEARNED = ("mulo_m", "lo_m", "mulo_s", "lo_s")
DECAYED = ("mulo_m_decayed", "lo_m_decayed")
NAMES = (*LEARNED, *DECAYED, "adam_m", "adam_cosine", "adam_s", "celo", "celo2")
LABELS = {
    "mulo_m": "muLO_M",
    "lo_m": "LO_M",
    "mulo_s": "muLO_S",
    "lo_s": "LO_S",
    "mulo_m_decayed": "muLO_M, linear decay",
    "lo_m_decayed": "LO_M, linear decay",
    "adam_m": "AdamM",
    "adam_s": "AdamS",
    "adam_cosine": "Adam, SP, tuned here",
    "celo": "Celo",
    "celo2": "Celo2, tuned here",
}
# The paper's grid: the learning rate, and the multipliers of inputs, of outputs and of the rate of hidden weights.
GRID = list(itertools.product((1e-1, 1e-2, 1e-3, 1e-4), *[(2.0**-4, 2.0**-2, 1.0, 2.0**2, 2.0**4)] * 3))
COSINE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A compared optimizer.

    `make(steps, *configuration)` returns a learner and its inner step. If `grid` has several configurations, the best
    one is chosen on each task. `task` has the arguments of the tasks that it trains, and `identity` tells it from
    others of the same name.
    """

    make: Callable[..., tuple[Any, Any]]
    identity: Any
    task: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"parametrization": SP()})
    grid: Sequence[tuple[float, ...]] = ((),)


def load(name: str, weights: Path | None):
    """The learner in `NAME.safetensors` of a folder; without a folder, the one that the package ships."""
    return loc.pretrained(name) if weights is None else loc.weights.load(weights / f"{name}.safetensors")


def digest(learner) -> str:
    """What tells the arrays of a learner from others."""
    arrays = jax.tree.leaves(eqx.filter(learner, eqx.is_array))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()[:12]


def compared(args) -> dict[str, Optimizer]:
    """The optimizers that were asked for, by name."""
    rest = [name for name in NAMES if name not in DECAYED]
    names = args.optimizers or [name for name in rest if not name.startswith("celo") or getattr(args, name)]
    return {name: compared_optimizer(name, args) for name in names}


def compared_optimizer(name: str, args) -> Optimizer:
    if name in ("adam_s", "adam_m"):
        return muadam(tuned_muadam(args.meta_widths if name == "adam_m" else [args.meta_width], args))
    if name == "adam_cosine":
        return with_cosine(loc.OptaxOptimizer(optax.adam, 1.0), args.cosine_rates)
    if name in ("celo", "celo2") and getattr(args, name) is None:
        raise ValueError(f"`--optimizers {name}` needs published weights: `--{name} FILE`.")
    if name == "celo2":
        return with_cosine(celo2(args.celo2), args.cosine_rates)
    if name in DECAYED:
        return with_linear_decay(compared_optimizer(name.removesuffix("_decayed"), args))
    if name == "celo":
        learner = loc.interop.from_reference("celo", loc.weights.read_arrays(args.celo), {})
    elif args.smoke and args.weights is None:
        learner = loc.recipes.small_fc_lopt(hidden_size=2, step_mult=1e-2, key=jax.random.key(0))
    else:
        learner = load(name, args.weights)
    parametrization = MuP() if name.startswith("mulo") else SP()
    return Optimizer(lambda steps: (learner, GradientStep()), digest(learner), {"parametrization": parametrization})


def celo2(file: Path):
    """Celo2 with learning rate 1, and AdamW for vectors and embeddings."""
    arrays = loc.interop.from_pylo("celo2", loc.weights.read_arrays(file))
    learned = loc.interop.from_reference("celo2", arrays, {"lr": 1.0})
    return Partitioned(learned, loc.OptaxOptimizer(optax.adamw, 1.0, b1=0.9, b2=0.95, weight_decay=0.0), Matrices())


def with_cosine(optimizer, rates: Sequence[float]) -> Optimizer:
    """An optimizer whose learning rate is 1, with cosine decay from a rate that is chosen on each task."""

    def make(steps, rate):
        return Scheduled(optimizer, OptaxSchedule(optax.cosine_decay_schedule, rate, decay_steps=steps)), GradientStep()

    return Optimizer(make, digest(optimizer), grid=[(rate,) for rate in rates])


def with_linear_decay(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, whose updates are scaled by a factor that falls linearly from 1 to 0 over training."""

    def make(steps):
        learner, inner_step = optimizer.make(steps)
        return Scheduled(learner, OptaxSchedule(optax.linear_schedule, 1.0, 0.0, steps)), inner_step

    return dataclasses.replace(optimizer, make=make, identity=[optimizer.identity, "linear decay"])


def muadam(found: dict[str, float]) -> Optimizer:
    """Adam under muP, with a learning rate and three multipliers."""
    multipliers = {name: found[name] for name in ("input_mult", "output_mult", "hidden_mult")}
    make = lambda steps: (loc.OptaxOptimizer(optax.adam, found["rate"]), GradientStep())  # noqa: E731
    return Optimizer(make, {"rate": found["rate"], **multipliers}, {"parametrization": MuP(**multipliers)})


def tuned_muadam(widths: Sequence[int], args) -> dict[str, float]:
    """The best of 500 configurations, by the mean final loss over MLPs of these widths, with one seed each.

    It is searched once, under the settings of meta-training, and kept in a folder that all scripts share.
    """
    keys = ("pixels", "meta_depth", "meta_horizon", "batch_size", "smoke")
    settings = {key: getattr(args, key) for key in keys} | {"data": kind_of(args.data)}
    folder = loc.meta.RunFolder.open(args.muadam or args.out.parent / "muadam", settings)
    grid = GRID[62::125] if args.smoke else GRID

    def compute():
        dataset = images("fashion_mnist", args.data, args.pixels)
        scores = np.zeros(len(grid))
        for width in widths:
            task = mlp(dataset, width, args.meta_depth, args.batch_size)(parametrization=MuP())
            at_once = 25 if width <= 128 else 1
            found = sweep_muadam(task, grid, args.meta_horizon, 1, at_once, jax.random.key(0))
            scores += np.asarray(found.evaluations.final()[:, 0])
        best = int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))
        names = ("rate", "input_mult", "output_mult", "hidden_mult")
        chosen = dict(zip(names, grid[best], strict=True))
        return {"scores": scores / len(widths)}, {**chosen, "loss": scores[best] / len(widths)}

    with folder.locked():
        path = folder.path / f"widths-{'-'.join(map(str, widths))}.safetensors"
        return kept(path, {"widths": list(widths), "configurations": len(grid)}, compute)[1]


def sweep_muadam(task, configurations, steps: int, num_seeds: int, at_once: int, key) -> loc.meta.Sweep:
    """Train an MLP with every configuration: a learning rate and, optionally, three multipliers."""

    def run(configuration):
        rate, *multipliers = configuration
        tuned = with_multipliers(task, *multipliers) if multipliers else task
        adam = loc.OptaxOptimizer(optax.adam, rate)
        return loc.meta.evaluate(adam, tuned, num_steps=steps, num_seeds=num_seeds, key=key)

    grid = tuple(jnp.asarray(values, jnp.float32) for values in zip(*configurations, strict=True))
    return loc.meta.sweep(run, grid, at_once=at_once)


def with_multipliers(task, input_mult, output_mult, hidden_mult):
    """A muP task with other hyper-multipliers. They may be traced, so a whole grid is compiled once."""

    def places(task):
        first, *_, last = task.trained.rest.layers
        return [first.multiplier, last.multiplier, task.trained.parametrization.hidden_mult]

    factors = input_mult, output_mult, hidden_mult
    return eqx.tree_at(places, task, [x * factor for x, factor in zip(places(task), factors, strict=True)])
