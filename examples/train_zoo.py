"""Train every model of the library for a few hundred steps, with Adam and with a learned optimizer.

    python examples/train_zoo.py
    python examples/train_zoo.py --fashion-mnist FOLDER --cifar10 FOLDER --text FOLDER --lm1b FOLDER
    python examples/train_zoo.py --weights FILE   # another learned optimizer; its card lies beside the file
    python examples/train_zoo.py --smoke          # a tiny version

By default images are scikit-learn's digits, and text is Python's own documentation. Prints the first and the last loss
of each model, and saves a figure. All models are under the parametrization of the card; neither optimizer is tuned.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import lo_components as loc
from lo_components.parametrization import SP


def language_task(read: Callable, files: list[Path], vocab_size: int, length: int, **sizes):
    """Language modeling of `files`, with a tokenizer trained on them; without files, of the bytes of Python's docs."""
    if not files:
        dataset = loc.data.python_docs(loc.data.ByteTokenizer(), length=length)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "text.model"
            dataset = read(
                loc.data.train_tokenizer(loc.data.read_lines(files), model, vocab_size=vocab_size), length=length
            )
    return loc.tasks.language_modeling(dataset, **sizes)


def make_tasks(
    card: loc.Card, fashion: Path | None, cifar: Path | None, text: Path | None, lm1b: Path | None, small: bool
) -> dict[str, Callable]:
    """Functions that build the tasks under the parametrization of the card, by name."""
    base: dict[str, Any] = dict(parametrization=card.parametrization, base_width=card.base_width)
    gray = loc.data.digits() if fashion is None else loc.data.fashion_mnist(fashion)
    color = gray if cifar is None else loc.data.cifar10(cifar)
    patch_size = max(2, color.image_shape[0] // 4)
    width, blocks, batch_size = (16, (1, 1), 8) if small else (128, (1, 1, 1), 64)
    tasks = loc.tasks
    language = dict(width=width, depth=2, heads=4, batch_size=batch_size // 2, **base)
    shards = sorted(lm1b.rglob("news.en*-of-*")) if lm1b else []
    words = sorted(text.glob("*.txt")) if text else []
    found = {
        "MLP": lambda: tasks.mlp_classification(
            gray, width=width, depth=3, base_in_size=card.base_in_size, batch_size=2 * batch_size, **base
        ),
        "CNN": lambda: tasks.cnn_classification(color, width=width // 2, batch_size=batch_size, **base),
        "ResNet, group norm": lambda: tasks.resnet_classification(
            color, blocks=blocks, width=width, batch_size=batch_size // 2, **base
        ),
        "ResNet, batch norm": lambda: tasks.resnet_classification(
            color, blocks=blocks, width=width, norm=loc.nn.BatchNorm, batch_size=batch_size // 2, **base
        ),
        "ViT": lambda: tasks.vit_classification(
            color, patch_size=patch_size, width=width, depth=2, heads=4, batch_size=batch_size, **base
        ),
        "LM": lambda: language_task(partial(loc.data.text_files, words), words, 2_000, 32, **language),
    }
    if lm1b:
        found["LM, LM1B"] = lambda: language_task(partial(loc.data.lm1b, lm1b), shards, 4_000, 32, **language)
    return found


def main(
    weights: Path | None = None,
    fashion_mnist: Path | None = None,
    cifar10: Path | None = None,
    text: Path | None = None,
    lm1b: Path | None = None,
    out: Path = Path("train_zoo.png"),
    steps: int = 300,
    learning_rate: float = 1e-2,
    smoke: bool = False,
) -> None:
    name, folder = (
        ("residual_muon", loc.pretrained) if weights is None else (weights.stem, loc.Pretrained(weights.parent))
    )
    card = folder.card(name)
    if card.kind != "optimizer":
        raise ValueError(f"`{name}` is an {card.kind}, and models are trained with an optimizer here.")
    adam = "Adam" if card.parametrization == SP() else "muAdam"
    optimizers = {adam: loc.OptaxOptimizer(optax.adam, learning_rate), name: folder(name)}
    panels = {}
    print(f"{'task':<20}{'optimizer':<24}{'first loss':>11}{'last loss':>11}{'seconds':>9}")
    tasks = make_tasks(card, fashion_mnist, cifar10, text, lm1b, smoke)
    # Compiling the large models takes too long for a smoke run.
    for title, make in list(tasks.items())[: 1 if smoke else None]:
        task, panels[title] = make(), {}
        for label, optimizer in optimizers.items():
            begin = time.perf_counter()
            curves = loc.meta.evaluate(
                optimizer, task, num_steps=3 if smoke else steps, num_seeds=1, key=jax.random.key(1)
            )
            panels[title][label] = losses = np.asarray(curves.losses)
            seconds = time.perf_counter() - begin
            print(f"{title:<20}{label:<24}{losses[0, 0]:>11.4f}{curves.final()[0]:>11.4f}{seconds:>9.0f}", flush=True)
    loc.plots.training_curves(panels, out, title="Every model, with Adam and with a learned optimizer")
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a learned optimizer with its card (default: residual_muon)")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's idx files")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10's batches")
    parser.add_argument("--text", type=Path, help="folder with text files, one document per line")
    parser.add_argument("--lm1b", type=Path, help="folder with shards of the One Billion Word Benchmark")
    parser.add_argument("--out", type=Path, default=Path("train_zoo.png"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
