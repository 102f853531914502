"""Figure 6 of muLO: an MLP, a language model and a vision transformer five times as deep as in meta-training.

    python examples/reproductions/figure_6_depth.py --data FOLDER --weights FOLDER
    python examples/reproductions/figure_6_depth.py --smoke            # a tiny version

As in the paper, widths are within the range of meta-training, and the two optimizers were meta-trained on several
widths. Beyond the paper, their updates are also scaled by a factor that decays over training. The paper's scale:

    ... --width 128 --meta-depth 3 --blocks 3 --steps 5000 --length 64 --batch-size 4096 --lm-batch-size 128
        --vit-batch-size 4096 --pixels 32
"""

from _compare import run
from _optimizers import DECAYED
from _tasks import Task, among, images, language, mlp, text, vit

OPTIONS = {
    "panels": (["MLP", "LM", "ViT"], "models"),
    "times": (5, "how many times as deep"),
    "width": (32, "width of all models"),
    "steps": (2000, "steps of the MLP"),
    "blocks": (2, "blocks of a transformer that is not deeper"),
    "transformer_steps": (500, "steps of the transformers"),
    "length": (32, "bytes of a sequence"),
    "lm_batch_size": (16, "sequences per step"),
    "vit_pixels": (32, "pixels of a side of the images of the vision transformer"),
    "vit_batch_size": (32, "images per step of the vision transformer"),
}
SMOKE = dict(panels=["MLP"], times=2, width=4, steps=3, blocks=1, transformer_steps=3)
SMOKE |= dict(length=8, lm_batch_size=2, vit_pixels=8, vit_batch_size=2)


def figures(args):
    squares, sentences = images("fashion_mnist", args.data, args.pixels), text(args.data, args.length)
    pictures, blocks = images("cifar10", args.data, args.vit_pixels), args.times * args.blocks
    panels = {
        "MLP": Task(mlp(squares, args.width, args.times * args.meta_depth, args.batch_size), args.steps),
        "LM": Task(language(sentences, args.width, blocks, args.lm_batch_size), args.transformer_steps),
        "ViT": Task(vit(pictures, args.width, blocks, args.vit_batch_size), args.transformer_steps),
    }
    return {"figure 6": among(panels, args.panels)}


if __name__ == "__main__":
    run(__doc__, figures, OPTIONS, SMOKE, optimizers=("mulo_m", "lo_m", *DECAYED))
