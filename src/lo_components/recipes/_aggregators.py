import jax
from jaxtyping import PRNGKeyArray

from .. import features as ft
from ..aggregators import LearnedAggregator
from ..heads import MLPHead
from ..optimizers import LearnedOptimizer
from ..steps import DirectionMagnitude
from ._optimizers import FACTORED_DECAYS, MOMENTUM_DECAYS, RMS_DECAY, with_factored_features


def lagg_a(
    num_workers: int,
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    momentum_decays: tuple[float, ...] = MOMENTUM_DECAYS,
    rms_decay: float = RMS_DECAY,
    factored_decays: tuple[float, ...] = FACTORED_DECAYS,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    """LAgg-A: the features of small_fc_lopt, with every worker's delta in place of the gradient: $K + 38$ features.

    Statistics are those of the mean delta. For $K$ workers and no other number of them; their order matters.

    **Arguments:**

    - `num_workers`: $K$.
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `momentum_decays`, `rms_decay`, `factored_decays`: initial decay rates, per round; momenta and factored moments
        must be equally many.
    - `key`: for the initial weights.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    optimizer = with_factored_features(
        ft.WorkerDeltas(num_workers),
        hidden_size=hidden_size,
        hidden_layers=hidden_layers,
        step_mult=step_mult,
        exp_mult=exp_mult,
        momentum_decays=momentum_decays,
        rms_decay=rms_decay,
        factored_decays=factored_decays,
        key=key,
    )
    return LearnedAggregator(optimizer)


def pooled_lagg_a(
    *,
    embedding_size: int = 8,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    momentum_decays: tuple[float, ...] = MOMENTUM_DECAYS,
    rms_decay: float = RMS_DECAY,
    factored_decays: tuple[float, ...] = FACTORED_DECAYS,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    """LOpt-A that also sees a pooled embedding of the workers' deltas: for any number of workers, in any order.

    **Arguments:**

    - `embedding_size`: channels of [`lo_components.features.PooledWorkerDeltas`][].
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `momentum_decays`, `rms_decay`, `factored_decays`: initial decay rates, per round; momenta and factored moments
        must be equally many.
    - `key`: for the initial weights.

    ??? cite "Source"
        Not published; between the LOpt-A and the LAgg-A of Joseph, Thérien et al. (arXiv 2312.02204).
    """
    embedding_key, key = jax.random.split(key)
    optimizer = with_factored_features(
        ft.Concat(ft.Gradient(), ft.PooledWorkerDeltas(embedding_size, key=embedding_key)),
        hidden_size=hidden_size,
        hidden_layers=hidden_layers,
        step_mult=step_mult,
        exp_mult=exp_mult,
        momentum_decays=momentum_decays,
        rms_decay=rms_decay,
        factored_decays=factored_decays,
        key=key,
    )
    return LearnedAggregator(optimizer)


def lopt_a(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    momentum_decays: tuple[float, ...] = MOMENTUM_DECAYS,
    rms_decay: float = RMS_DECAY,
    factored_decays: tuple[float, ...] = FACTORED_DECAYS,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    """LOpt-A: small_fc_lopt with the mean delta in place of the gradient, 39 features; for any number of workers.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `momentum_decays`, `rms_decay`, `factored_decays`: initial decay rates, per round; momenta and factored moments
        must be equally many.
    - `key`: for the initial weights.

    ??? cite "Source"
        Joseph, Thérien et al., *Meta-learning Optimizers for Communication-Efficient Learning* (arXiv 2312.02204).
    """
    optimizer = with_factored_features(
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
    return LearnedAggregator(optimizer)


def lagg(
    num_workers: int,
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    """LAgg: every worker's delta, the parameter and the time, $K + 12$ features; remembers only the number of rounds.

    **Arguments:**

    - `num_workers`: $K$, fixed as for [`lo_components.recipes.lagg_a`][].
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    ??? cite "Source"
        LAgg-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return _without_statistics(ft.WorkerDeltas(num_workers), hidden_size, hidden_layers, step_mult, exp_mult, key=key)


def lopt(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    """LOpt: the mean delta, the parameter and the time, 13 features; remembers only the number of rounds.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    ??? cite "Source"
        LOpt-A without its Ada features: Joseph, Thérien et al. (arXiv 2312.02204).
    """
    return _without_statistics(ft.Gradient(), hidden_size, hidden_layers, step_mult, exp_mult, key=key)


def _without_statistics(
    inputs: ft.AbstractFeature,
    hidden_size: int,
    hidden_layers: int,
    step_mult: float,
    exp_mult: float,
    *,
    key: PRNGKeyArray,
) -> LearnedAggregator:
    features = ft.Concat(ft.RMSNormalized(ft.Concat(inputs, ft.Parameter()), eps=1e-5), ft.TimeEmbedding())
    return LearnedAggregator(
        LearnedOptimizer(
            accumulators=(),
            features=features,
            head=MLPHead(features.size, 2, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key),
            step_rule=DirectionMagnitude(step_mult, exp_mult),
        )
    )
