"""Meta-train and evaluate on image files that are decoded while the device computes, as for ImageNet.

    python examples/streaming.py                 # digits, written as PNG files first; a few minutes on two CPU cores
    python examples/streaming.py --data FOLDER   # one subfolder of images per class
    python examples/streaming.py --smoke         # a tiny version

Only a sample of the images is kept on the device. Prints a table and saves a figure. If it is interrupted, run it again
to continue with the batches that would have followed.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import optax
from PIL import Image

import lo_components as loc
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class ImageFiles:
    """A source with a length and examples by index. An example is an image `[size, size, 3]` of bytes and its class."""

    def __init__(self, folder: Path, size: int):
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise ValueError(f"`{folder}` has no subfolders of images; expected one per class.")
        self.files = [(path, self.classes.index(path.relative_to(folder).parts[0])) for path in paths]
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        path, label = self.files[index]
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            return np.asarray(square.resize((self.size, self.size), Image.Resampling.BOX)), np.int32(label)


class Normalized:
    """Some examples of another source, in the form of the task's batches."""

    def __init__(self, files: ImageFiles, index: np.ndarray, dataset: loc.data.ImageDataset):
        self.files, self.index = files, index
        self.mean, self.std = np.float32(dataset.mean), np.float32(dataset.std)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int):
        image, label = self.files[self.index[index]]
        return (image - self.mean) / self.std, label


def write_digits(folder: Path, count: int) -> Path:
    """The digits of scikit-learn as PNG files, one folder per class."""
    train = loc.data.digits().splits["train"]
    for i, (image, label) in enumerate(zip(np.asarray(train.images), train.labels.tolist(), strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        if i < count and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.minimum(image * 16, 255).astype(np.uint8)).save(path)
    return folder


def sample(files: ImageFiles, index: np.ndarray):
    images, labels = zip(*(files[i] for i in index.tolist()), strict=True)
    return np.stack(images), np.asarray(labels)


def main(
    data: Path | None = None,
    out: Path = Path("streaming.png"),
    size: int = 16,
    workers: int = 0,
    meta_steps: int = 300,
    smoke: bool = False,
) -> None:
    steps, held_out, batch_size, window, pairs, horizon = 500, 256, 64, 20, 4, LogUniformHorizon(40, 200)
    if smoke:
        meta_steps, steps, held_out, batch_size, window, pairs, horizon = 3, 5, 32, 8, 2, 1, LogUniformHorizon(2, 4)
    folder = out.with_suffix("")
    files = ImageFiles(data or write_digits(folder / "digits", 100 if smoke else 1500), size)

    # What stays on the device: held-out images, and as many training images, for the statistics.
    valid, train = np.split(np.random.default_rng(0).permutation(len(files)), [held_out])
    splits = {"train": sample(files, train[:held_out]), "outer_valid": sample(files, valid)}
    dataset = loc.data.image_dataset(splits, num_classes=len(files.classes), name=str(data or "digits"))
    task = loc.tasks.cnn_classification(dataset, width=8, depth=2, batch_size=batch_size)

    # What does not: each meta-step and each chunk of an evaluation takes the next window of batches.
    streamed = loc.tasks.Streamed(task, num_batches=window)
    source = Normalized(files, train, dataset)
    with closing(loc.data.pipeline(source, batch_size, seed=0, num_workers=workers)) as stream:
        learner = loc.meta.meta_train(
            loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=jax.random.key(0)),
            loc.estimators.PES(TruncatedUnroll(streamed, horizon, window), num_pairs=pairs, std=0.05),
            num_steps=meta_steps,
            optimizer=loc.meta.meta_optimizer(meta_steps, peak=1e-2, end=0.0),
            checkpoints=loc.meta.Checkpoints(folder / "run", {"data": str(data), "size": size, "steps": meta_steps}),
            stream=stream,
            key=jax.random.key(1),
        )
    learners = {"learned": learner, "Adam, 1e-3": optax.adam(1e-3), "Adam, 1e-2": optax.adam(1e-2)}
    curves = {}
    print(f"\n{'':<12}{'training loss':>16}{'held-out accuracy':>20}   after {steps} steps, 3 seeds")
    with closing(loc.data.pipeline(source, batch_size, seed=1, num_workers=workers)) as stream:
        for name, each in learners.items():
            found = loc.meta.evaluate(
                each, streamed, num_steps=steps, splits=("outer_valid",), stream=stream, key=jax.random.key(2)
            )
            accuracy = float(np.median(found.metrics["outer_valid"]["accuracy"][:, -1]))
            print(f"{name:<12}{float(np.median(found.final())):>16.4f}{accuracy:>20.1%}", flush=True)
            curves[name] = np.asarray(found.losses)
    loc.plots.training_curves({"": curves}, out, title="Meta-trained and evaluated on streamed images")
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with one subfolder of images per class (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("streaming.png"))
    parser.add_argument("--size", type=int, default=16, help="height and width to which images are resized")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; 0 for a thread")
    parser.add_argument("--meta-steps", type=int, default=300)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
