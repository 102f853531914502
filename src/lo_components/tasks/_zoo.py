"""The tasks of the muLO and LAgg-A papers: one function per model, with sizes as arguments."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._types import typechecked
from ..data import ImageDataset, TokenDataset
from ..nn import CNN, MLP, Autoencoder, BatchNorm, GroupNorm, ResNet, TransformerLM, ViT
from ..parametrization import SP, AbstractParametrization, Axis
from ._autoencoding import Autoencoding
from ._language import LanguageModeling
from ._supervised import ImageClassification


@typechecked
def mlp_classification(
    dataset: ImageDataset,
    *,
    width: int,
    depth: int = 2,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    base_in_size: int | None = None,
    batch_size: int = 128,
) -> ImageClassification:
    """An image classification task with an MLP.

    **Arguments:**

    - `dataset`: the images.
    - `width`, `depth`: units per hidden layer, and the number of hidden layers.
    - `parametrization`, `base_width`: as in [`lo_components.nn.MLP`][].
    - `base_in_size`: the number of inputs of the base model, for an optimizer that was tuned or meta-trained on images
        of another size. The first layer is then scaled like a hidden one, with `hidden_mult` instead of `input_mult`.
        If `None`, inputs do not grow, as in the papers.
    - `batch_size`: images per step.

    Raises `ValueError` if `base_in_size` is below 1.

    **Example:**

    ```pycon
    >>> task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=16)
    >>> [layer.weight.shape for layer in task.init(key=jax.random.key(0)).layers]
    [(32, 64), (10, 32)]
    ```

    ??? cite "Source"
        muLO (arXiv 2406.00153), appendix D: three hidden layers, widths 128 to 8192, batch 4096, ImageNet and CIFAR-10.
        LAgg-A (arXiv 2312.02204): two layers of 128 on Fashion-MNIST, three on ImageNet 32x32.
    """
    sizes = dict(width=width, depth=depth, parametrization=parametrization, base_width=base_width)
    build = _build(MLP, (_pixels(dataset, base_in_size), dataset.num_classes), sizes)
    return ImageClassification(dataset, build, parametrization=parametrization, batch_size=batch_size)


@typechecked
def cnn_classification(
    dataset: ImageDataset,
    *,
    width: int = 64,
    depth: int = 3,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    batch_size: int = 128,
) -> ImageClassification:
    """An image classification task with a small convolutional network.

    **Arguments:**

    - `dataset`: the images.
    - `width`, `depth`: channels of the last convolution, and the number of convolutions.
    - `parametrization`, `base_width`: as in [`lo_components.nn.CNN`][].
    - `batch_size`: images per step.

    ??? cite "Source"
        LAgg-A (arXiv 2312.02204): three convolutions on CIFAR-10.
    """
    sizes = dict(width=width, depth=depth, parametrization=parametrization, base_width=base_width)
    build = _build(CNN, (_channels(dataset), dataset.num_classes), sizes)
    return ImageClassification(dataset, build, parametrization=parametrization, batch_size=batch_size)


@typechecked
def resnet_classification(
    dataset: ImageDataset,
    *,
    blocks: Sequence[int] = (2, 2, 2, 2),
    bottleneck: bool = False,
    width: int = 512,
    norm: type[GroupNorm | BatchNorm] = GroupNorm,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    batch_size: int = 128,
) -> ImageClassification:
    """An image classification task with a residual network, ResNet-18 by default.

    ResNet-50 has `blocks=(3, 4, 6, 3)` and `bottleneck=True`. Images of 64 pixels and more get the stem with a stride.

    **Arguments:**

    - `dataset`: the images.
    - `blocks`, `bottleneck`, `width`, `norm`: as in [`lo_components.nn.ResNet`][].
    - `parametrization`, `base_width`: as in [`lo_components.nn.ResNet`][].
    - `batch_size`: images per step.

    ??? cite "Source"
        LAgg-A (arXiv 2312.02204): ResNet-50.
    """
    large_stem = min(dataset.image_shape[:2]) >= 64
    sizes = dict(blocks=tuple(blocks), bottleneck=bottleneck, width=width, base_width=base_width)
    form = dict(norm=norm, large_stem=large_stem, parametrization=parametrization)
    build = _build(ResNet, (_channels(dataset), dataset.num_classes), sizes | form)
    return ImageClassification(dataset, build, parametrization=parametrization, batch_size=batch_size)


@typechecked
def vit_classification(
    dataset: ImageDataset,
    *,
    patch_size: int = 16,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    batch_size: int = 128,
) -> ImageClassification:
    """An image classification task with a vision transformer, by default of the size of DeiT-tiny.

    **Arguments:**

    - `dataset`: the images.
    - `patch_size`, `width`, `depth`, `heads`: as in [`lo_components.nn.ViT`][]. DeiT-small: width 384, 6 heads.
    - `parametrization`, `base_width`: as in [`lo_components.nn.ViT`][].
    - `batch_size`: images per step.

    ??? cite "Source"
        muLO (arXiv 2406.00153): widths 192, 1024 and 2048, depths 3 to 64; LAgg-A (arXiv 2312.02204): DeiT-tiny on
        ImageNet 64x64.
    """
    sizes = dict(patch_size=patch_size, width=width, depth=depth, heads=heads)
    form = dict(parametrization=parametrization, base_width=base_width)
    build = _build(ViT, (dataset.image_shape, dataset.num_classes), sizes | form)
    return ImageClassification(dataset, build, parametrization=parametrization, batch_size=batch_size)


@typechecked
def image_autoencoding(
    dataset: ImageDataset,
    *,
    width: int,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    base_in_size: int | None = None,
    batch_size: int = 128,
) -> Autoencoding:
    """An autoencoding task with an MLP that has a narrow layer.

    **Arguments:**

    - `dataset`: the images.
    - `width`, `parametrization`, `base_width`: as in [`lo_components.nn.Autoencoder`][].
    - `base_in_size`: as in [`lo_components.tasks.mlp_classification`][].
    - `batch_size`: images per step.

    Raises `ValueError` if `base_in_size` is below 1.

    ??? cite "Source"
        google/learned_optimization: `ImageMLPAE` on Fashion-MNIST with widths 128, 32 and 128.
    """
    sizes = dict(width=width, parametrization=parametrization, base_width=base_width)
    build = _build(Autoencoder, (_pixels(dataset, base_in_size),), sizes)
    return Autoencoding(dataset, build, parametrization=parametrization, batch_size=batch_size)


@typechecked
def language_modeling(
    dataset: TokenDataset,
    *,
    width: int,
    depth: int = 3,
    heads: int = 2,
    positions: bool = False,
    dropout: float = 0.0,
    parametrization: AbstractParametrization = SP(),
    base_width: int | None = None,
    batch_size: int = 128,
) -> LanguageModeling:
    """A language modeling task with a decoder-only transformer.

    **Arguments:**

    - `dataset`: packed sequences; their length is the context length.
    - `width`, `depth`, `heads`, `dropout`: as in [`lo_components.nn.TransformerLM`][].
    - `positions`: whether to learn positional embeddings; the papers' models have none.
    - `parametrization`, `base_width`: as in [`lo_components.nn.TransformerLM`][].
    - `batch_size`: sequences per step.

    ??? cite "Source"
        muLO (arXiv 2406.00153): LM1B, widths up to 2048, sequences of 64, batch 128, 32,000 pieces; LAgg-A
        (arXiv 2312.02204): width 192, 12 heads, 12 blocks, sequences of 16.
    """
    max_length = dataset.length if positions else None
    sizes = dict(width=width, depth=depth, heads=heads, base_width=base_width)
    form = dict(max_length=max_length, dropout=dropout, parametrization=parametrization)
    build = _build(TransformerLM, (dataset.vocab_size,), sizes | form)
    return LanguageModeling(dataset, build, parametrization=parametrization, batch_size=batch_size)


def _pixels(dataset: ImageDataset, base_in_size: int | None) -> Axis:
    """The inputs of an MLP."""
    if base_in_size is not None and base_in_size < 1:
        raise ValueError(f"`base_in_size` must be at least 1, got {base_in_size}.")
    pixels = math.prod(dataset.image_shape)
    return Axis.fixed(pixels) if base_in_size is None else Axis.growing(pixels, base_in_size)


def _channels(dataset: ImageDataset) -> int:
    return math.prod(dataset.image_shape[2:])


def _build(model: type, args: tuple[Any, ...], sizes: dict[str, Any]) -> Callable[[PRNGKeyArray], Any]:
    """A function that builds a model. Two with equal arguments are equal, so their tasks share a compiled program."""
    return eqx.Partial(_built, model, args, sizes)


def _built(model: type, args: tuple[Any, ...], sizes: dict[str, Any], key: PRNGKeyArray) -> Any:
    return model(*args, key=key, **sizes)
