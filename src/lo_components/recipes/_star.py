from jaxtyping import PRNGKeyArray

from .. import features as ft
from ..optimizers import LearnedOptimizer
from ..steps import AbstractStepRule, DirectionMagnitude, Magnitude, Sum, Times
from ._pipelines import DECAYS, with_learned_decays, with_step


def star(
    *,
    step_rule: AbstractStepRule | None = None,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    momentum_decays: tuple[float, ...] = DECAYS,
    rms_decay: float = 0.999,
    factored_decays: tuple[float, ...] = DECAYS,
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """A STAR optimizer: small_fc_lopt whose update is added to that of Adam, the nominal term.

    **Arguments:**

    - `step_rule`: by default the sum of two terms, each 0.001 times an exponential of an output: a preconditioned
        direction, and the mean of Adam over all momenta. To vary a term, give the sum; the nominal term, for instance,
        is SGD's with `Times(Magnitude(), Gradient())`, has one magnitude for a tensor with `Pooled(..., (0,))`, and a
        third term `Times(Magnitude(1e-4), Parameter())` is weight decay of learned strength.
    - `hidden_size`, `hidden_layers`: of the MLP, which has as many outputs as the step rule takes.
    - `momentum_decays`, `rms_decay`, `factored_decays`: as in [`lo_components.recipes.Options`][].
    - `key`: for the initial weights.

    **Returns:** the optimizer. Nominal term and preconditioning are not made for transfer across widths:
    parametrizations scale all terms like Adam's updates.

    ??? cite "Source"
        Harrison, Metz & Sohl-Dickstein, *A Closer Look at Learned Optimization: Stability, Robustness, and Inductive
        Biases* (arXiv 2209.11208); `MLPNomLOpt` of google/learned_optimization.
    """
    if step_rule is None:
        step_rule = Sum(
            Times(DirectionMagnitude(), ft.InverseRoot(ft.Squares(), eps=1e-6)),
            Times(Magnitude(), ft.ChannelMean(ft.NormalizedMomenta(len(momentum_decays)))),
        )
    accumulators, features = with_learned_decays(ft.Gradient(), momentum_decays, rms_decay, factored_decays)
    return LearnedOptimizer(
        with_step(accumulators, features, step_rule, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
    )
