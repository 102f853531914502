from jaxtyping import Array, Float, PyTree

from .._types import Params
from ..optimizers import StepContext
from ..parametrization import UNSCALED, UpdateRule, every_leaf
from ._base import AbstractMaskedAggregator


class Mean(AbstractMaskedAggregator[None]):
    r"""The mean delta, $\Delta p = \bar d = \frac1K \sum_k d_k$.

    It averages the workers' parameters with equal weights: local SGD, or FedAvg with equally many examples per worker.

    ??? cite "Source"
        McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data* (arXiv 1602.05629);
        Stich, *Local SGD Converges Fast and Communicates Little* (arXiv 1805.09767).
    """

    def update_rules(self, params: Params) -> PyTree[UpdateRule]:
        return every_leaf(params, UNSCALED)

    def init_inner(self, params: Params) -> None:
        return None

    def combine(
        self,
        mean: PyTree[Float[Array, "..."]],
        deltas: PyTree[Float[Array, "workers ..."]],
        state: None,
        params: Params,
        *,
        context: StepContext,
    ) -> tuple[PyTree[Float[Array, "..."]], None]:
        return mean, None
