"""The inputs of a head, computed for each parameter."""

from ._base import AbstractFeature as AbstractFeature
from ._base import Channels as Channels
from ._combine import Channel as Channel
from ._combine import ChannelMean as ChannelMean
from ._combine import Concat as Concat
from ._combine import MatricesOnly as MatricesOnly
from ._combine import RMSNormalized as RMSNormalized
from ._combine import RMSNormalizedMatrices as RMSNormalizedMatrices
from ._combine import TensorMean as TensorMean
from ._factored import ColumnSquares as ColumnSquares
from ._factored import FactoredGradient as FactoredGradient
from ._factored import FactoredMomenta as FactoredMomenta
from ._factored import RowSquares as RowSquares
from ._moments import InverseRoot as InverseRoot
from ._moments import Momenta as Momenta
from ._moments import NormalizedGradient as NormalizedGradient
from ._moments import NormalizedMomenta as NormalizedMomenta
from ._moments import Squares as Squares
from ._raw import ClippedGradient as ClippedGradient
from ._raw import Gradient as Gradient
from ._raw import LogAndSign as LogAndSign
from ._raw import Parameter as Parameter
from ._recurrent import Recurrent as Recurrent
from ._time import TimeEmbedding as TimeEmbedding
from ._workers import PooledWorkerDeltas as PooledWorkerDeltas
from ._workers import WorkerDeltas as WorkerDeltas
