"""Data sets, and batches from them."""

from ._sampler import sample_batch as sample_batch
from ._sources import ImageDataset as ImageDataset
from ._sources import LabelledImages as LabelledImages
from ._sources import digits as digits
from ._sources import fashion_mnist as fashion_mnist
from ._sources import image_dataset as image_dataset
from ._sources import read_idx as read_idx
