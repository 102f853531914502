"""Muon with updates of root mean square 1, and a learned optimizer that starts from it."""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..controllers import ScaleController, SignalSummary
from ..heads import HeadByRank, IdentityHead, ResidualHead
from ..optimizers import ControlledOptimizer, LearnedOptimizer, Scheduled
from ..pipeline import Pipeline
from ..schedules import WarmUpAndDecay
from ..steps import Direction, Flattened, Orthogonalized, RMSOne, TimesLastControl

_DECAYS = (0.5, 0.9, 0.97, 0.99)
_CORRECTED = 1  # the momentum with decay rate 0.9
_EPS = 1e-24  # so that tiny gradients count like large ones


def rms_muon(
    learning_rate: float | Float[Array, ""],
    *,
    decay: float = 0.9,
    warm_up: float = 0.05,
    reference_steps: int | None = None,
    axis: int = 0,
) -> Scheduled:
    r"""Muon with updates of root mean square 1 for all tensors, times a learning rate with warm-up and linear decay.

    The momentum is divided by its root mean square, and that of a matrix is orthogonalized first; kernels of
    convolutions are flattened to matrices. Nothing is learned: it is the control of
    [`lo_components.recipes.residual_muon`][]. Needs `num_steps`.

    **Arguments:**

    - `learning_rate`: the root mean square of each update, at the peak of the schedule.
    - `decay`: the decay rate of the momentum.
    - `warm_up`, `reference_steps`: of the schedule, [`lo_components.schedules.WarmUpAndDecay`][].
    - `axis`: the axis of a kernel's outputs: 0 in Equinox, -1 in Flax.

    **Returns:** the optimizer. It has no meta-parameters, unless `learning_rate` is an array.

    ??? cite "Source"
        Jordan et al., *Muon* (2024), with the normalization of Celo2 (arXiv 2602.19142).
    """
    momentum = ft.RMSNormalized(ft.Momenta(1), eps=_EPS)
    transforms = (_orthogonalized(axis),)
    pipeline = Pipeline((acc.Momentum((decay,)),), momentum, IdentityHead(1), Direction(1.0), transforms)
    return Scheduled(LearnedOptimizer(pipeline), WarmUpAndDecay(learning_rate, warm_up, reference_steps))


def residual_muon(
    learning_rate: float | Float[Array, ""],
    *,
    hidden_size: int = 8,
    controller_size: int = 16,
    warm_up: float = 0.05,
    reference_steps: int | None = None,
    axis: int = 0,
    key: PRNGKeyArray,
) -> Scheduled:
    r"""A learned optimizer that starts as [`lo_components.recipes.rms_muon`][]: Muon plus a learned correction.

    Two things are learned. Before the orthogonalization, a small network for each rank adds a correction to the
    momentum, from four momenta with and without Adam's normalization and the gradient
    ([`lo_components.heads.ResidualHead`][]). And each tensor's update has a factor that depends on the time and on how
    much of its gradient is signal ([`lo_components.controllers.ScaleController`][]). At first the correction is 0 and
    the factor is 1. Needs `num_steps`.

    **Arguments:**

    - `learning_rate`: the root mean square of each update, at the peak of the schedule, while the factor is 1. An array
        is meta-learned.
    - `hidden_size`: the number of hidden units of each network.
    - `controller_size`: the number of hidden units of the controller.
    - `warm_up`, `reference_steps`: of the schedule, [`lo_components.schedules.WarmUpAndDecay`][].
    - `axis`: the axis of a kernel's outputs: 0 in Equinox, -1 in Flax.
    - `key`: for the initial weights.

    **Returns:** the optimizer, which is `rms_muon` until it is meta-trained.

    **Example:**

    ```pycon
    >>> learner = loc.recipes.residual_muon(4e-3, key=jax.random.key(0))
    >>> learner.schedule
    WarmUpAndDecay(peak=0.004, warm_up=0.05)
    ```
    """
    matrices_key, vectors_key, controller_key = jax.random.split(key, 3)
    count = len(_DECAYS)
    momenta = ft.Concat(
        ft.Momenta(count), ft.NormalizedMomenta(count, eps=_EPS), ft.Gradient(), ft.NormalizedGradient(eps=_EPS)
    )
    features = ft.RMSNormalized(momenta, eps=_EPS)
    matrices, vectors = (
        ResidualHead(features.size, _CORRECTED, hidden_size=hidden_size, key=k) for k in (matrices_key, vectors_key)
    )
    summary = SignalSummary(count)
    pipeline = Pipeline(
        (acc.Momentum(_DECAYS), acc.SquaredMomentum((0.98,))),
        features,
        HeadByRank(matrices, vectors),
        Direction(1.0),
        (_orthogonalized(axis), TimesLastControl()),
    )
    controller = ScaleController(summary.size, hidden_size=controller_size, key=controller_key)
    schedule = WarmUpAndDecay(learning_rate, warm_up, reference_steps)
    return Scheduled(ControlledOptimizer(controller, summary, pipeline), schedule)


def _orthogonalized(axis: int) -> Flattened:
    return Flattened((Orthogonalized(), RMSOne()), axis)
