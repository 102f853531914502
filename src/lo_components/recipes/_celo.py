"""Celo and its relatives."""

import jax
import optax
from jaxtyping import PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..heads import IdentityHead, MLPHead
from ..optimizers import (
    AbstractOptimizer,
    ClippedByValue,
    Decayed,
    LearnedOptimizer,
    Matrices,
    Named,
    OptaxOptimizer,
    Partitioned,
    Scheduled,
)
from ..pipeline import Pipeline
from ..schedules import Exponential, LearnedSchedule, Limited, OptaxSchedule
from ..steps import Direction, DirectionMagnitude, Orthogonalized, RelativeToParameter, RMSOne
from ._pipelines import DECAYS


def accumulators(rms_decay: float) -> tuple[acc.AbstractAccumulator, ...]:
    """The state of VeLO, Celo and Celo2.

    **Arguments:**

    - `rms_decay`: the decay rate of the squared gradient.
    """
    return acc.Momentum(DECAYS), acc.SquaredMomentum((rms_decay,)), acc.FactoredSquares(DECAYS)


def velo_features(eps: float) -> tuple[ft.AbstractFeature, ft.AbstractFeature]:
    """The 30 channels of VeLO, Celo and Celo2, in two groups: 15 for all tensors, and 15 that are factored.

    **Arguments:**

    - `eps`: added to second moments before the inverse root.
    """
    pointwise = ft.Concat(
        ft.Gradient(),
        ft.ClippedGradient(0.1),
        ft.Parameter(),
        ft.Momenta(),
        ft.Squares(),
        ft.NormalizedMomenta(eps=eps),
        ft.InverseRoot(ft.Squares(), eps=eps),
        ft.FactoredGradient(),
        ft.NormalizedGradient(eps=eps),
    )
    factored = ft.Concat(
        ft.RowSquares(),
        ft.ColumnSquares(),
        ft.InverseRoot(ft.RowSquares(), eps=1e-8),
        ft.InverseRoot(ft.ColumnSquares(), eps=1e-8),
        ft.FactoredMomenta(eps=0.0),
    )
    return pointwise, factored


def celo_update(
    *, hidden_size: int = 4, hidden_layers: int = 2, step_mult: float = 1e-3, exp_mult: float = 1e-3, key: PRNGKeyArray
) -> LearnedOptimizer:
    """The optimizer Celo without its schedule, as in the first phase of its meta-training.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Moudgil et al., *Celo: Training Versatile Learned Optimizers on a Compute Diet* (arXiv 2501.12670).
    """
    features = ft.RMSNormalized(ft.Concat(*velo_features(1e-6)), eps=1e-5)
    head = MLPHead(features.size, 2, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
    step_rule = DirectionMagnitude(step_mult, exp_mult)
    return LearnedOptimizer(Pipeline(accumulators(0.999), features, head, step_rule, (RelativeToParameter(),)))


def celo(
    *,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    lstm_size: int = 64,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    key: PRNGKeyArray,
) -> ClippedByValue:
    """The optimizer Celo: a small MLP for each parameter, and one learned schedule for the whole model.

    Needs loss and `num_steps`.

    **Arguments:**

    - `hidden_size`, `hidden_layers`: of the MLP.
    - `lstm_size`: the number of units of the schedule's recurrent network.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Moudgil et al., *Celo: Training Versatile Learned Optimizers on a Compute Diet* (arXiv 2501.12670).
    """
    options = {"hidden_size": hidden_size, "hidden_layers": hidden_layers, "step_mult": step_mult, "exp_mult": exp_mult}
    mlp_key, schedule_key = jax.random.split(key)
    schedule = Exponential(LearnedSchedule(lstm_size, key=schedule_key), 0.1)
    return ClippedByValue(Scheduled(celo_update(key=mlp_key, **options), schedule))


def celo_adam(*, lstm_size: int = 64, step_mult: float = 1e-3, key: PRNGKeyArray) -> ClippedByValue:
    """The optimizer Celo-Adam: Adam with the learned schedule of Celo. Needs loss and `num_steps`.

    **Arguments:**

    - `lstm_size`: the number of units of the schedule's recurrent network.
    - `step_mult`: the learning rate by which the schedule is multiplied.
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Moudgil et al. (arXiv 2501.12670), table 5.
    """
    adam = OptaxOptimizer(optax.adam, step_mult, eps=1e-8, eps_root=1e-10)
    return ClippedByValue(Scheduled(adam, Exponential(LearnedSchedule(lstm_size, key=key), 0.1)))


def sinv6(*, lstm_size: int = 64, step_mult: float = 1e-3, key: PRNGKeyArray) -> ClippedByValue:
    """The optimizer Sinv6: Adam without bias correction, in steps of a parameter's size, with a learned schedule.

    Needs loss and `num_steps`. Its weights have the arrays of Celo-Adam's, but mean something else.

    **Arguments:**

    - `lstm_size`: the number of units of the schedule's recurrent network.
    - `step_mult`: the learning rate by which the schedule is multiplied.
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        The submission `sinv6` to AlgoPerf 2024 (github.com/mlcommons/submissions_algorithms).
    """
    pipeline = Pipeline(
        (acc.Momentum((0.9,)), acc.SquaredMomentum((0.999,))),
        ft.NormalizedMomenta(1, eps=1e-10, eps_outside=1e-8),
        IdentityHead(1),
        Direction(step_mult),
        (RelativeToParameter(),),
    )
    schedule = Limited(LearnedSchedule(lstm_size, key=key), 1e-5, 1e3)
    return ClippedByValue(Scheduled(LearnedOptimizer(pipeline), schedule))


def celo2_direction(
    *, orthogonalize: bool = True, hidden_size: int = 8, hidden_layers: int = 2, key: PRNGKeyArray
) -> ClippedByValue:
    """The learned part of Celo2: updates of root mean square 1, without a learning rate.

    **Arguments:**

    - `orthogonalize`: whether updates of matrices are orthogonalized first (Celo2), or not (Celo2-base).
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `key`: for the initial weights.

    ??? cite "Source"
        Celo2 (arXiv 2602.19142).
    """
    pointwise, factored = velo_features(1e-8)
    features = ft.RMSNormalizedMatrices(ft.Concat(pointwise, ft.MatricesOnly(factored)), eps=1e-9)
    head = MLPHead(features.size, 1, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
    transforms = (Orthogonalized(), RMSOne()) if orthogonalize else (RMSOne(),)
    return ClippedByValue(LearnedOptimizer(Pipeline(accumulators(0.95), features, head, Direction(1.0), transforms)))


def celo2_base(
    learning_rate: float, *, weight_decay: float = 0.0, hidden_size: int = 8, hidden_layers: int = 2, key: PRNGKeyArray
) -> Scheduled:
    """The optimizer Celo2-base: a fixed step size times a learned direction, for all tensors.

    **Arguments:**

    - `learning_rate`: the root mean square of each update. Put [`lo_components.optimizers.Scheduled`][] around the
        result for warm-up and decay.
    - `weight_decay`: decoupled, multiplied by the learning rate as in AdamW.
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Celo2 (arXiv 2602.19142).
    """
    direction = celo2_direction(orthogonalize=False, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
    return Scheduled(Decayed(direction, weight_decay), OptaxSchedule(optax.constant_schedule, learning_rate))


def celo2(
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    select: Matrices | Named = Matrices(),
    rest: AbstractOptimizer | None = None,
    hidden_size: int = 8,
    hidden_layers: int = 2,
    key: PRNGKeyArray,
) -> Partitioned:
    """The optimizer Celo2: orthogonalized learned updates for matrices, AdamW for vectors and embeddings.

    The last two axes of a tensor are a matrix, as in kernels `[height, width, in, out]` of Flax and Haiku; leave
    kernels of Equinox, `[out, in, height, width]`, to AdamW. Put [`lo_components.optimizers.Scheduled`][] around the
    result for warm-up and decay.

    **Arguments:**

    - `learning_rate`: the root mean square of each update of a matrix, and the learning rate of AdamW.
    - `weight_decay`: decoupled, multiplied by the learning rate as in AdamW.
    - `select`: the tensors with learned updates.
    - `rest`: the optimizer of the others; by default AdamW with decay rates 0.9 and 0.95.
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Celo2 (arXiv 2602.19142).
    """
    direction = celo2_direction(hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)
    learned = Scheduled(Decayed(direction, weight_decay), OptaxSchedule(optax.constant_schedule, learning_rate))
    if rest is None:
        rest = OptaxOptimizer(optax.adamw, learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)
    return Partitioned(learned, rest, select)
