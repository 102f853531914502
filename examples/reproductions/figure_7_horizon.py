"""Figure 7 of muLO: 25 times as many steps as the longest training in meta-training.

    python examples/reproductions/figure_7_horizon.py --data FOLDER --weights FOLDER
    python examples/reproductions/figure_7_horizon.py --smoke            # a tiny version

As in the paper, the two optimizers were meta-trained on several widths. Beyond the paper, their updates are also scaled
by a factor that decays over training. The paper's scale:

    ... --width 128 --meta-depth 3 --blocks 3 --length 64 --batch-size 4096 --lm-batch-size 128 --vit-batch-size 4096
        --pixels 32
"""

from _compare import run
from _optimizers import DECAYED
from _tasks import Task, among, images, language, mlp, text, vit

OPTIONS = {
    "panels": (["MLP", "LM", "ViT"], "models"),
    "times": (25, "how many times as long"),
    "width": (32, "width of all models"),
    "blocks": (2, "blocks of the transformers"),
    "length": (32, "bytes of a sequence"),
    "lm_batch_size": (8, "sequences per step"),
    "vit_pixels": (32, "pixels of a side of the images of the vision transformer"),
    "vit_batch_size": (16, "images per step of the vision transformer"),
}
SMOKE = dict(panels=["MLP"], times=2, width=4, blocks=1, length=8, lm_batch_size=2, vit_pixels=8, vit_batch_size=2)


def figures(args):
    steps, pictures = args.times * args.meta_horizon, images("cifar10", args.data, args.vit_pixels)
    squares, sentences = images("fashion_mnist", args.data, args.pixels), text(args.data, args.length)
    panels = {
        "MLP": Task(mlp(squares, args.width, args.meta_depth, args.batch_size), steps),
        "ViT": Task(vit(pictures, args.width, args.blocks, args.vit_batch_size), steps),
        "LM": Task(language(sentences, args.width, args.blocks, args.lm_batch_size), steps),
    }
    return {"figure 7": among(panels, args.panels)}


if __name__ == "__main__":
    run(__doc__, figures, OPTIONS, SMOKE, optimizers=("mulo_m", "lo_m", *DECAYED))
