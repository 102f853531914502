from jaxtyping import PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..heads import MLPHead
from ..optimizers import LearnedOptimizer
from ..steps import DirectionMagnitude

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAY = 0.999
FACTORED_DECAYS = (0.9, 0.99, 0.999)


def small_fc_lopt(
    *,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    momentum_decays: tuple[float, ...] = MOMENTUM_DECAYS,
    rms_decay: float = RMS_DECAY,
    factored_decays: tuple[float, ...] = FACTORED_DECAYS,
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """The per-parameter MLP optimizer small_fc_lopt: 39 features, meta-learned decays.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP; 4 x 2 is the original's default, both papers use 32 x 2.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `momentum_decays`, `rms_decay`, `factored_decays`: initial decay rates; momenta and factored moments must be
        equally many, since features pair them.
    - `key`: for the initial weights.

    ??? cite "Source"
        `AdafacMLPLOpt` of google/learned_optimization; described in Metz et al., *Practical tradeoffs between memory,
        compute, and performance in learned optimizers* (arXiv 2203.11860).
    """
    return with_factored_features(
        ft.Gradient(),
        hidden_size=hidden_size,
        hidden_layers=hidden_layers,
        step_mult=step_mult,
        exp_mult=exp_mult,
        momentum_decays=momentum_decays,
        rms_decay=rms_decay,
        factored_decays=factored_decays,
        key=key,
    )


def with_factored_features(
    inputs: ft.AbstractFeature,
    *,
    hidden_size: int,
    hidden_layers: int,
    step_mult: float,
    exp_mult: float,
    momentum_decays: tuple[float, ...],
    rms_decay: float,
    factored_decays: tuple[float, ...],
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """small_fc_lopt with `inputs` in place of the gradient as the first of its features."""
    count = len(momentum_decays)
    if len(factored_decays) != count:
        raise ValueError(
            f"`factored_decays` must have as many entries as `momentum_decays`, got {len(factored_decays)} and {count}."
        )
    features = ft.Concat(
        ft.RMSNormalized(
            ft.Concat(
                inputs,
                ft.Parameter(),
                ft.Momenta(count),
                ft.Squares(),
                ft.NormalizedMomenta(count, eps=1e-6),
                ft.InverseRoot(ft.Squares(), eps=1e-6),
                ft.FactoredGradient(count),
                ft.RowSquares(count),
                ft.ColumnSquares(count),
                ft.InverseRoot(ft.RowSquares(count), eps=1e-8),
                ft.InverseRoot(ft.ColumnSquares(count), eps=1e-8),
                ft.FactoredMomenta(count, eps=1e-6),
            ),
            eps=1e-5,
        ),
        ft.TimeEmbedding(),
    )
    return LearnedOptimizer(
        accumulators=(
            acc.Momentum(momentum_decays, learnable=True),
            acc.SquaredMomentum((rms_decay,), learnable=True),
            acc.FactoredSquares(factored_decays, learnable=True),
        ),
        features=features,
        head=MLPHead(features.size, 2, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key),
        step_rule=DirectionMagnitude(step_mult, exp_mult),
    )


def mulo(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-2,
    exp_mult: float = 1e-3,
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """The learned optimizer of the muLO paper: small_fc_lopt of hidden size 32 with a step multiplier of 0.01.

    What makes it muLO is the parametrization of its tasks: meta-train and use it on optimizees under
    [`lo_components.parametrization.MuP`][], whose update scales the inner steps apply around it.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    ??? cite "Source"
        Thérien et al., *muLO: Compute-Efficient Meta-Generalization of Learned Optimizers* (arXiv 2406.00153).
    """
    return small_fc_lopt(
        hidden_size=hidden_size, hidden_layers=hidden_layers, step_mult=step_mult, exp_mult=exp_mult, key=key
    )


def lolv2(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """The simplest MLP optimizer: gradient, parameter, six momenta and the time, 19 features; constant decays.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `decays`: of the momenta.
    - `key`: for the initial weights.

    ??? cite "Source"
        `MLPLOpt` (LOLv2) of google/learned_optimization; Metz et al. (arXiv 2203.11860).
    """
    features = ft.Concat(
        ft.RMSNormalized(ft.Concat(ft.Gradient(), ft.Parameter(), ft.Momenta(len(decays))), eps=1e-5),
        ft.TimeEmbedding(),
    )
    return LearnedOptimizer(
        accumulators=(acc.Momentum(decays),),
        features=features,
        head=MLPHead(features.size, 2, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key),
        step_rule=DirectionMagnitude(step_mult, exp_mult),
    )
