"""Train tasks with the compared optimizers over several seeds: curves, figures and a summary in JSON."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _optimizers import COSINE_RATES, LABELS, NAMES, Optimizer, compared
from _results import described, kept, middle, summary, write
from _tasks import DATA, STAND_INS, Task, kind_of

import lo_components as loc

SMALL = 50_000  # parameters; smaller networks are trained several at a time
# These may differ between two runs of one folder: each result is checked for the optimizer that it belongs to.
_NOT_SETTINGS = ("out", "weights", "muadam", "celo", "celo2", "optimizers", "figures", "panels", "at_once")


def arguments(
    doc: str,
    options: Mapping[str, tuple[Any, str]],
    smoke: Mapping[str, Any],
    names: Sequence[str] = NAMES,
    optimizers: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse the arguments of every script, and `options`: by name, a default and a help text.

    Optimizers are chosen from `names`, by default `optimizers`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = Path(sys.argv[0]).stem
    out = Path("reproductions") / name
    parser.add_argument("--data", type=Path, help=f"{DATA} (default: {STAND_INS})")
    parser.add_argument("--weights", type=Path, help="folder with `NAME.safetensors` (default: what the package ships)")
    parser.add_argument("--optimizers", nargs="+", choices=names, help=f"default: {' '.join(optimizers) or 'all'}")
    parser.add_argument("--celo", type=Path, metavar="FILE", help="published weights of Celo, `theta.state`")
    parser.add_argument("--celo2", type=Path, metavar="FILE", help="published weights of Celo2, `celo2_weights.pt`")
    parser.add_argument("--muadam", type=Path, help="folder for AdamS and AdamM (default: `muadam` beside `--out`)")
    parser.add_argument("--out", type=Path, default=out, help=f"folder of the results (default: {out})")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="how many results to compute in parallel")
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    common = {
        "seeds": (5, "seeds of each curve"),
        "seed": (2, "from which they are drawn; learning rates are tuned with the next one"),
        "batch_size": (128, "examples per step"),
        "meta_width": (32, "width of the networks in meta-training"),
        "meta_widths": ([16, 32, 64], "their widths in meta-training on several"),
        "meta_depth": (2, "their number of hidden layers"),
        "meta_horizon": (1000, "the longest horizon of meta-training"),
        "pixels": (8, "pixels of a side of the images in meta-training"),
        "cosine_rates": (list(COSINE_RATES), "learning rates that are tried with cosine decay"),
    }
    tiny = dict(
        optimizers=["mulo_m"],
        seeds=2,
        batch_size=4,
        meta_width=4,
        meta_widths=[4, 8],
        meta_horizon=3,
        cosine_rates=[0.01, 0.001],
    )
    for name, (default, text) in (common | dict(options)).items():
        several = isinstance(default, list)
        kind = type(default[0] if several else default)
        shown = " ".join(f"{x:g}" if kind is float else str(x) for x in (default if several else [default]))
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, nargs="+" if several else None, default=default, help=f"{text} ({shown})")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(tiny | dict(smoke))
    args.optimizers = args.optimizers or list(optimizers)
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that identify a run."""
    found = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    return found | {"data": kind_of(args.data)}


def train(path: Path, optimizer: Optimizer, task: Task, seeds: int, seed: int) -> tuple[np.ndarray, dict]:
    """Losses `[seeds, steps]` and facts about them, from `path` if they are there."""

    def compute():
        built = task.make(**optimizer.task)
        shapes = jax.tree.leaves(eqx.filter_eval_shape(built.init, key=jax.random.key(0)))
        parameters = sum(x.size for x in shapes)
        small = parameters <= SMALL

        def run(configuration, num_seeds, seed):
            learner, inner_step = optimizer.make(task.steps, *configuration)
            options = dict(num_seeds=num_seeds, seeds_at_once=num_seeds if small else 1, key=jax.random.key(seed))
            return loc.meta.evaluate(learner, built, num_steps=task.steps, inner_step=inner_step, **options)

        best, facts = optimizer.grid[0], {"optimizer": optimizer.identity, "parameters": parameters}
        if len(optimizer.grid) > 1:
            grid = tuple(jnp.asarray(values, jnp.float32) for values in zip(*optimizer.grid, strict=True))
            found = loc.meta.sweep(lambda chosen: run(chosen, 1, seed + 1), grid, at_once=16 if small else 1)
            chosen = found.best()
            best = optimizer.grid[chosen.index]
            facts |= {"configuration": list(best), "of": len(optimizer.grid), "at_edge": bool(chosen.at_edge)}
        return {"losses": run(best, seeds, seed).losses}, facts

    identity = {"optimizer": optimizer.identity, "grid": optimizer.grid, "steps": task.steps, "seeds": [seeds, seed]}
    arrays, facts = kept(path, identity, compute)
    return arrays["losses"], facts


Panels = Mapping[str, tuple[Task, Mapping[str, Optimizer]]]
Results = dict[str, dict[str, tuple[np.ndarray, dict]]]


def train_all(folder: loc.meta.RunFolder, panels: Panels, *, seeds: int, seed: int, at_once: int) -> Results:
    """Losses and facts by panel and optimizer. Each result is a file of the folder; those that are there are kept."""

    def result(panel: str, name: str):
        task, optimizers = panels[panel]
        file = "".join(c if c.isalnum() else "-" for c in f"{panel}--{name}") + ".safetensors"
        losses, facts = train(folder.path / file, optimizers[name], task, seeds, seed)
        values = summary(losses)
        line = (
            f"{panel}, {LABELS.get(name, name)}: {described(values['final'])}, {values['diverged']} of {seeds} diverged"
        )
        print(f"{line}, {facts['seconds']} s", flush=True)
        return losses, facts

    with folder.locked(), ThreadPoolExecutor(at_once) as pool:
        futures = {
            panel: {name: pool.submit(result, panel, name) for name in optimizers}
            for panel, (_, optimizers) in panels.items()
        }
        try:
            return {panel: {name: future.result() for name, future in of.items()} for panel, of in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_json(task: Task, results: Mapping[str, tuple[np.ndarray, dict]]) -> dict[str, Any]:
    """One panel's results for JSON."""
    return {"steps": task.steps, "optimizers": {name: summary(x) | facts for name, (x, facts) in results.items()}}


def table(panel: str, results: Mapping[str, tuple[np.ndarray, dict]]) -> str:
    """The final losses of one panel, lowest first."""
    lines = [f"\n{panel}: loss after {next(iter(results.values()))[0].shape[1]} steps, median (lowest to highest)"]
    summaries = {name: summary(losses) for name, (losses, _) in results.items()}
    for name, values in sorted(summaries.items(), key=lambda pair: middle(pair[1]["final"])):
        facts, notes = results[name][1], f", {values['diverged']} diverged" if values["diverged"] else ""
        if "configuration" in facts:
            edge = ", at the edge of the grid" if facts["at_edge"] else ""
            notes += f", rate {facts['configuration'][0]:g}, best of {facts['of']}{edge}"
        lines.append(f"  {LABELS.get(name, name):<24}{described(values['final'])}{notes}")
    return "\n".join(lines)


def program(main: Callable[[], None]) -> None:
    """Run a script, with an error or an interruption as one line."""
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to continue")


def run(
    doc: str,
    figures: Callable[[argparse.Namespace], dict[str, dict[str, Task]]],
    options: Mapping[str, tuple[Any, str]],
    smoke: Mapping[str, Any],
    optimizers: Sequence[str] = (),
) -> None:
    """The program of a script whose `figures` map the names of figures to their panels, and these to tasks."""

    def main() -> None:
        args = arguments(doc, options, smoke, optimizers=optimizers)
        folder = loc.meta.RunFolder.open(args.out, settings(args))
        chosen = compared(args)
        found, results = figures(args), {}
        panels = {f"{figure}, {panel}": (task, chosen) for figure, of in found.items() for panel, task in of.items()}
        curves = train_all(folder, panels, seeds=args.seeds, seed=args.seed, at_once=args.at_once)
        for figure, of in found.items():
            results[figure] = {panel: in_json(task, curves[f"{figure}, {panel}"]) for panel, task in of.items()}
            lines = {p: {LABELS[n]: x for n, (x, _) in curves[f"{figure}, {p}"].items()} for p in of}
            loc.plots.training_curves(lines, args.out / f"{figure}.png", title=figure, horizon=args.meta_horizon)
            for panel in of:
                print(table(f"{figure}, {panel}", curves[f"{figure}, {panel}"]))
        write(args.out / "results.json", settings(args), results)
        print(f"\nfigures and results.json: {args.out}")

    program(main)
