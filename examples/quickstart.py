"""Meta-train a learned optimizer on narrow networks under SP (LO) and under muP (muLO), and test both on wide networks.

    python examples/quickstart.py                 # digits, a few minutes on two CPU cores
    python examples/quickstart.py --data FOLDER   # Fashion-MNIST's four idx files
    python examples/quickstart.py --smoke         # a tiny version, under a minute

Prints a table, and saves `quickstart.png` and the weights of the optimizers in the output folder. If it is interrupted,
run it again to continue.
"""

import argparse
import dataclasses
import hashlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lo_components as loc
from lo_components.parametrization import SP, MuP


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that identify a run."""

    data: str
    fingerprint: str
    seed: int
    meta_steps: int = 2000
    meta_width: int = 32
    widths: tuple[int, ...] = (32, 128, 512, 1024)
    horizon: int = 400
    steps: int = 1000
    widest_steps: int = 400
    pairs: int = 4
    std: float = 0.05
    meta_rate: float = 1e-2
    window: int = 50
    batch_size: int = 128
    seeds: int = 3
    adam_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)

    def test_steps(self, width: int) -> int:
        return self.widest_steps if width == max(self.widths) else self.steps


SMOKE = dict(
    meta_steps=4, meta_width=8, widths=(16,), horizon=20, steps=20, widest_steps=10, pairs=2, window=10, seeds=2,
    adam_rates=(1e-2, 1e-3), batch_size=16,
)  # fmt: skip

# Name, parametrization of the tasks, and step multiplier (the muLO paper's values).
LEARNED = (("muLO", MuP(), 1e-2), ("LO", SP(), 1e-3))
NAMES = ("muLO", "LO", "Adam")


def fingerprint(dataset) -> str:
    """A digest that identifies a data set."""
    digest = hashlib.sha256()
    for examples in dataset.splits.values():
        digest.update(np.asarray(examples.images).tobytes() + np.asarray(examples.labels).tobytes())
    return digest.hexdigest()[:12]


def task(settings: Settings, dataset, width: int, parametrization):
    return loc.tasks.mlp_classification(
        dataset, width=width, depth=2, parametrization=parametrization, batch_size=settings.batch_size
    )


def meta_train(settings: Settings, dataset, name: str, parametrization, step_mult: float, out: Path):
    """One learned optimizer, meta-trained on the narrow task, or read from `out` if it is there."""
    unroll = loc.unroll.TruncatedUnroll(
        task(settings, dataset, settings.meta_width, parametrization),
        settings.horizon,
        settings.window,
    )
    init_key, run_key = jax.random.split(jax.random.key(settings.seed))
    config = {"name": name, "parametrization": repr(parametrization), "step_mult": step_mult}
    return loc.meta.meta_train(
        loc.recipes.small_fc_lopt(hidden_size=4, step_mult=step_mult, key=init_key),
        loc.estimators.PES(unroll, num_pairs=settings.pairs, std=settings.std),
        num_steps=settings.meta_steps,
        # This run is shorter than the papers' 5,000 meta-steps, so the rate is higher, and it decays to 0.
        optimizer=loc.meta.meta_optimizer(settings.meta_steps, peak=settings.meta_rate, end=0.0),
        checkpoints=loc.meta.Checkpoints(out, {**config, **dataclasses.asdict(settings)}, every=50),
        progress=f"meta-training {name}",
        key=run_key,
    )


def meta_test(settings: Settings, dataset, width: int, optimizers) -> dict[str, jax.Array]:
    """Losses `[seeds, steps]` of every optimizer at one width; for Adam, at its best learning rate."""
    steps, key = settings.test_steps(width), jax.random.key(settings.seed + 1)

    def curves(parametrization, optimizer):
        target = task(settings, dataset, width, parametrization)
        return loc.meta.evaluate(optimizer, target, num_steps=steps, num_seeds=settings.seeds, key=key)

    # Compiling uses one core, so compile both in parallel.
    with ThreadPoolExecutor(len(LEARNED)) as pool:
        found = pool.map(lambda entry: curves(entry[1], optimizers[entry[0]]).losses, LEARNED)
        losses = {name: values for (name, *_), values in zip(LEARNED, found, strict=True)}
    rates = jnp.asarray(settings.adam_rates)
    adam = loc.meta.sweep(lambda rate: curves(SP(), loc.OptaxOptimizer(optax.adam, rate)), rates)
    return {**losses, "Adam": adam.best().evaluation.losses}


def expected_results(settings: Settings):
    """The structure of the losses at all widths."""
    return {
        width: {name: jax.ShapeDtypeStruct((settings.seeds, settings.test_steps(width)), jnp.float32) for name in NAMES}
        for width in settings.widths
    }


def table(settings: Settings, results: dict[int, dict[str, jax.Array]]) -> str:
    """A table of training losses, means over 20 steps: the median over seeds, with the lowest and the highest."""
    lines = [f"{'width':>6} {'step':>6}   " + "".join(f"{name:<28}" for name in results[settings.widths[0]])]
    for width, losses in results.items():
        for step in sorted({min(settings.horizon, settings.test_steps(width)), settings.test_steps(width)}):
            cells = []
            for values in losses.values():
                means = np.asarray(values)[:, max(0, step - 20) : step].mean(axis=1)
                spread = f"{np.median(means):.4f} ({means.min():.4f} to {means.max():.4f})"
                cells.append(f"{spread if np.isfinite(means).all() else 'diverged':<28}")
            lines.append(f"{width:>6} {step:>6}   " + "".join(cells))
    return "\n".join(lines)


def draw(settings: Settings, results: dict[int, dict[str, jax.Array]], out: Path) -> Path:
    """Save the figure, and return its path."""

    def label(width: int) -> str:
        return f"width {width}" + (" (meta-trained here)" if width == settings.meta_width else "")

    path = out / "quickstart.png"
    title = (
        f"Meta-trained at width {settings.meta_width} for up to {settings.horizon} steps (dotted), used at every width"
    )
    panels = {label(width): losses for width, losses in results.items()}
    loc.plots.training_curves(panels, path, title=title, horizon=settings.horizon)
    return path


def main(data: Path | None = None, out: Path = Path("quickstart"), seed: int = 0, smoke: bool = False) -> None:
    dataset = loc.data.digits() if data is None else loc.data.fashion_mnist(data)
    name = "digits" if data is None else "idx files"
    settings = Settings(name, fingerprint(dataset), seed, **(SMOKE if smoke else {}))
    folder = loc.meta.RunFolder.open(out, dataclasses.asdict(settings))
    curves = folder.path / "curves.safetensors"
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(phase: str):
        begin = time.perf_counter()
        yield
        seconds[phase] = time.perf_counter() - begin

    if curves.exists():
        print(f"This run is finished. Its results are read from `{folder.path}`, and only the figure is made again.")
        try:
            loaded, seconds = loc.weights.load_arrays(curves, expected_results(settings))
        except loc.weights.CheckpointError as error:
            raise ValueError(f"{error} Delete it to repeat the meta-tests; the optimizers are kept.") from None
        # Loaded dictionaries have sorted keys.
        results = {width: {name: loaded[width][name] for name in NAMES} for width in settings.widths}
    else:
        optimizers, results = {}, {}
        for name, parametrization, step_mult in LEARNED:
            with timed(f"meta-train {name}"):
                optimizers[name] = meta_train(
                    settings, dataset, name, parametrization, step_mult, folder.path / name.lower()
                )
            # To use it elsewhere: `loc.weights.load(path)`.
            loc.weights.save(folder.path / f"{name.lower()}.safetensors", optimizers[name])
        for width in settings.widths:
            with timed(f"meta-test width {width}"):
                results[width] = meta_test(settings, dataset, width, optimizers)
            print(f"tested at width {width} in {seconds[f'meta-test width {width}']:.0f} s", flush=True)
        loc.weights.save_arrays(curves, results, metadata=seconds)
    print(f"\nTraining loss, median of {settings.seeds} seeds (lowest to highest):\n\n{table(settings, results)}\n")
    print("seconds: " + ", ".join(f"{phase} {s:.0f}" for phase, s in seconds.items()))
    print(f"figure: {draw(settings, results, folder.path)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="output folder (default: quickstart)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to continue from the last checkpoint")
