from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..unroll import InnerState, TruncatedUnroll
from ._antithetic import check_settings, estimate, init_pairs, unroll_pairs
from ._base import AbstractEstimator, Estimate


class TruncatedES(AbstractEstimator[InnerState]):
    r"""Evolution strategies on each window alone: $\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2\sigma^2}\epsilon_w$.

    Biased where an episode has more than one window: it ignores what earlier windows' parameters owe to $\theta$.
    With one window per episode it equals [`lo_components.estimators.PES`][].

    ??? cite "Source"
        Metz et al., *Understanding and correcting pathologies in the training of learned optimizers*
        (arXiv 1810.10180), section 3.
    """

    unroll: TruncatedUnroll
    num_pairs: int = eqx.field(default=8, static=True)
    std: float = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        check_settings(self.num_pairs, self.std)

    def init(self, learner: Any, *, key: PRNGKeyArray) -> InnerState:
        return init_pairs(self.unroll, learner, self.num_pairs, key=key)

    def estimate(self, learner: Any, state: InnerState, *, key: PRNGKeyArray) -> tuple[Estimate, InnerState]:
        out, noise = unroll_pairs(self.unroll, learner, state, self.std, key=key)
        return estimate(out, noise, self.std), out.state
