"""Figure 5 of muLO: language models on LM1B and vision transformers, with optimizers meta-trained on MLPs only.

    python examples/reproductions/figure_5_transformers.py --data FOLDER --weights FOLDER
    python examples/reproductions/figure_5_transformers.py --smoke            # a tiny version

The paper trains 3 blocks of several widths for 5,000 steps, on 32,000 pieces of words and on ImageNet. Here text is
bytes, and images are those of CIFAR-10. Sizes as in the paper:

    ... --meta-width 128 --meta-widths 128 512 1024 --meta-depth 3 --blocks 3 --lm-widths 192 768 2048 --lm-steps 5000
        --vit-widths 192 768 2048 --vit-steps 5000 --length 64 --lm-batch-size 128 --vit-batch-size 4096
"""

from _compare import run
from _tasks import Task, by_width, images, language, text, vit

OPTIONS = {
    "blocks": (2, "blocks of the transformers"),
    "lm_widths": ([64, 256], "widths of the language models"),
    "lm_steps": ([500, 150], "steps at each of them, or at all"),
    "length": (32, "bytes of a sequence"),
    "lm_batch_size": (16, "sequences per step"),
    "vit_widths": ([64, 256], "widths of the vision transformers"),
    "vit_steps": ([500, 150], "steps at each of them, or at all"),
    "vit_pixels": (32, "pixels of a side of the images"),
    "vit_batch_size": (32, "images per step"),
}
SMOKE = dict(blocks=1, lm_widths=[8], lm_steps=[3], length=8, lm_batch_size=2)
SMOKE |= dict(vit_widths=[8], vit_steps=[3], vit_pixels=8, vit_batch_size=2)


def figures(args):
    sentences, pictures = text(args.data, args.length), images("cifar10", args.data, args.vit_pixels)
    panels = {
        f"LM, width {width}": Task(language(sentences, width, args.blocks, args.lm_batch_size), steps)
        for width, steps in by_width(args.lm_widths, args.lm_steps).items()
    }
    panels |= {
        f"ViT, width {width}": Task(vit(pictures, width, args.blocks, args.vit_batch_size), steps)
        for width, steps in by_width(args.vit_widths, args.vit_steps).items()
    }
    return {"figure 5": panels}


if __name__ == "__main__":
    run(__doc__, figures, OPTIONS, SMOKE)
