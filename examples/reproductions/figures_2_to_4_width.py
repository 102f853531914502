"""Figures 2 to 4 of muLO: MLPs wider than in meta-training, on the same data, on larger images and on CIFAR-10.

    python examples/reproductions/figures_2_to_4_width.py --data FOLDER --weights FOLDER
    python examples/reproductions/figures_2_to_4_width.py --smoke            # a tiny version

In the paper optimizers are meta-trained at width 128 and used at up to 64 times this width for 5,000 steps. Here the
largest width is also 64 times that of meta-training, but wide networks are trained for fewer steps. The paper's scale:

    ... --meta-width 128 --meta-widths 128 512 1024 --meta-depth 3 --batch-size 4096 --pixels 32 --larger-pixels 64
        --cifar-pixels 32 --widths-2 128 2048 8192 --steps-2 5000 --widths-3 128 512 2048 --steps-3 5000
        --widths-4 128 512 2048 8192 --steps-4 5000
"""

from _compare import run
from _tasks import Task, among, by_width, images, mlp

OPTIONS = {
    "figures": ([2, 3, 4], "which figures"),
    "widths_2": ([32, 256, 2048], "widths on the data of meta-training"),
    "steps_2": ([5000, 2000, 300], "steps at each of them, or at all"),
    "widths_3": ([32, 128, 512], "widths on larger images"),
    "steps_3": ([5000, 2000, 1000], "steps at each of them, or at all"),
    "larger_pixels": (28, "pixels of a side of the larger images"),
    "widths_4": ([128, 512, 1024], "widths on CIFAR-10"),
    "steps_4": ([2000, 1000, 500], "steps at each of them, or at all"),
    "cifar_pixels": (8, "pixels of a side of the color images of CIFAR-10"),
}
SMOKE = dict(optimizers=["mulo_m", "lo_s", "adam_m", "adam_cosine"])
SMOKE |= dict(widths_2=[8], steps_2=[3], widths_3=[8], steps_3=[3], widths_4=[8], steps_4=[3])


def figures(args):
    def panels(dataset, widths, steps):
        sizes = dict(depth=args.meta_depth, batch_size=args.batch_size)
        return {
            f"width {width}": Task(mlp(dataset, width, **sizes), count)
            for width, count in by_width(widths, steps).items()
        }

    of = {
        2: lambda: panels(images("fashion_mnist", args.data, args.pixels), args.widths_2, args.steps_2),
        3: lambda: panels(images("fashion_mnist", args.data, args.larger_pixels), args.widths_3, args.steps_3),
        4: lambda: panels(images("cifar10", args.data, args.cifar_pixels), args.widths_4, args.steps_4),
    }
    return {f"figure {number}": make() for number, make in among(of, args.figures).items()}


if __name__ == "__main__":
    run(__doc__, figures, OPTIONS, SMOKE)
