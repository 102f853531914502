"""Train every optimizee of the zoo for some hundred steps with Adam and with a learned optimizer, side by side.

    python examples/train_zoo.py --weights quickstart/mulo.safetensors
    python examples/train_zoo.py --weights ... --fashion-mnist FOLDER --cifar10 FOLDER --text FOLDER
    python examples/train_zoo.py --smoke          # everything in small

Without folders images are scikit-learn's digits, text is the standard library's documentation. Prints each model's loss
at the start and at the end, and saves a picture.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lo_components as loc
from lo_components.optimizers import Adam
from lo_components.parametrization import MuP

MUP: dict[str, Any] = dict(parametrization=MuP())


def text_dataset(folder: Path | None, vocab_size: int, length: int):
    """Bytes of the standard library's documentation, or pieces of a tokenizer trained on the folder's own text."""
    if folder is None:
        return loc.data.python_docs(loc.data.ByteTokenizer(), length=length)
    with tempfile.TemporaryDirectory() as scratch:
        lines = loc.data.read_lines(sorted(folder.glob("*.txt")))
        tokenizer = loc.data.train_tokenizer(lines, Path(scratch) / "text.model", vocab_size=vocab_size)
    return loc.data.text_files(folder, tokenizer, length=length)


def make_tasks(fashion: Path | None, cifar: Path | None, text: Path | None, small: bool) -> dict[str, Callable]:
    """Tasks by name, made when asked for."""
    gray = loc.data.digits() if fashion is None else loc.data.fashion_mnist(fashion)
    color = gray if cifar is None else loc.data.cifar10(cifar)
    patch_size = max(2, color.image_shape[0] // 4)
    width, blocks, batch_size = (16, (1, 1), 8) if small else (128, (1, 1, 1), 64)
    tasks = loc.tasks
    return {
        "MLP": lambda: tasks.mlp_classification(gray, width=width, depth=3, batch_size=2 * batch_size, **MUP),
        "CNN": lambda: tasks.cnn_classification(color, width=width // 2, batch_size=batch_size, **MUP),
        "ResNet, group norm": lambda: tasks.resnet_classification(
            color, blocks=blocks, width=width, batch_size=batch_size // 2, **MUP
        ),
        "ResNet, batch norm": lambda: tasks.resnet_classification(
            color, blocks=blocks, width=width, norm="batch", batch_size=batch_size // 2, **MUP
        ),
        "ViT": lambda: tasks.vit_classification(
            color, patch_size=patch_size, width=width, depth=2, heads=4, batch_size=batch_size, **MUP
        ),
        "language model": lambda: tasks.language_modeling(
            text_dataset(text, 2_000, 32), width=width, depth=2, heads=4, batch_size=batch_size // 2, **MUP
        ),
    }


def main(
    weights: Path | None = None,
    hidden_size: int = 4,
    fashion_mnist: Path | None = None,
    cifar10: Path | None = None,
    text: Path | None = None,
    out: Path = Path("train_zoo.png"),
    steps: int = 300,
    learning_rate: float = 1e-2,
    smoke: bool = False,
) -> None:
    learned = loc.recipes.small_fc_lopt(hidden_size=hidden_size, step_mult=1e-2, key=jax.random.key(0))
    if weights is not None:
        learned, _ = loc.interop.load_arrays(weights, learned)
    optimizers = {"muAdam": Adam(learning_rate), "muLO" if weights else "muLO (random weights)": learned}
    panels = {}
    print(f"{'task':<20}{'optimizer':<24}{'first loss':>11}{'last loss':>11}{'seconds':>9}")
    tasks = make_tasks(fashion_mnist, cifar10, text, smoke)
    # Compiling the large ones takes longer than a smoke run may.
    for name, make in list(tasks.items())[: 1 if smoke else None]:
        task, panels[name] = make(), {}
        for label, optimizer in optimizers.items():
            begin = time.perf_counter()
            curves = loc.meta.evaluate(task, optimizer, 3 if smoke else steps, num_seeds=1, key=jax.random.key(1))
            panels[name][label] = losses = np.asarray(curves.losses)
            seconds = time.perf_counter() - begin
            print(f"{name:<20}{label:<24}{losses[0, 0]:>11.4f}{curves.final()[0]:>11.4f}{seconds:>9.0f}", flush=True)
    loc.plots.training_curves(panels, out, title="Every optimizee, with Adam and with a learned optimizer, under muP")
    print(f"\npicture: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the learned optimizer's weights; by default they are random")
    parser.add_argument("--hidden-size", type=int, default=4, help="of the learned optimizer (default: 4)")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's idx files")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10's python batches")
    parser.add_argument("--text", type=Path, help="folder with text files, one document a line")
    parser.add_argument("--out", type=Path, default=Path("train_zoo.png"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--smoke", action="store_true", help="everything in small")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
