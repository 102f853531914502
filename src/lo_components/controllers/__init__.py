"""Networks that see the tensors of a model as a whole, and control how each of them is updated."""

from ._base import AbstractController as AbstractController
from ._mixing import MixingController as MixingController
from ._mixing import MixingState as MixingState
from ._scale import ScaleController as ScaleController
from ._summaries import AbstractSummary as AbstractSummary
from ._summaries import MomentSummary as MomentSummary
from ._summaries import NormSummary as NormSummary
from ._summaries import SignalSummary as SignalSummary
