"""Models to train, built from layers that take a parametrization."""

from ._autoencoder import Autoencoder as Autoencoder
from ._base import AbstractLayer as AbstractLayer
from ._base import AbstractWeightLayer as AbstractWeightLayer
from ._base import declared_parametrization as declared_parametrization
from ._base import declared_widths as declared_widths
from ._cnn import CNN as CNN
from ._layers import Conv as Conv
from ._layers import Embedding as Embedding
from ._layers import Linear as Linear
from ._mlp import MLP as MLP
from ._named import named_layers as named_layers
from ._norms import AbstractNorm as AbstractNorm
from ._norms import BatchNorm as BatchNorm
from ._norms import GroupNorm as GroupNorm
from ._norms import LayerNorm as LayerNorm
from ._resnet import ResNet as ResNet
from ._transformer import Attention as Attention
from ._transformer import TransformerBlock as TransformerBlock
from ._transformer import TransformerLM as TransformerLM
from ._transformer import ViT as ViT
