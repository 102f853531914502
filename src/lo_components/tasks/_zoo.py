import math

from .._types import typechecked
from ..data import ImageDataset
from ..nn import MLP
from ..parametrization import SP, AbstractParametrization
from ._supervised import ImageClassification


@typechecked
def mlp_classification(
    dataset: ImageDataset,
    *,
    width: int,
    depth: int = 2,
    parametrization: AbstractParametrization = SP(),
    base_width: int = 1,
    batch_size: int = 128,
) -> ImageClassification:
    """Image classification with an MLP.

    **Arguments:**

    - `dataset`: the images.
    - `width`, `depth`: units per hidden layer, and the number of hidden layers.
    - `parametrization`, `base_width`: as in [`lo_components.nn.MLP`][].
    - `batch_size`: images per step.

    ??? cite "Source"
        The MLP tasks of muLO (arXiv 2406.00153), appendix D.
    """
    in_size = math.prod(dataset.image_shape)

    def build(key):
        return MLP(
            in_size,
            dataset.num_classes,
            width=width,
            depth=depth,
            parametrization=parametrization,
            base_width=base_width,
            key=key,
        )

    return ImageClassification(dataset, build, parametrization=parametrization, batch_size=batch_size)
