"""Communication rounds of the LAgg-A paper: the setting of meta-training, and the tuned baselines."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import optax
from _optimizers import Optimizer, load
from _tasks import mlp

import lo_components as loc
from lo_components.aggregators import Mean, OuterOptimizer, SlowMo
from lo_components.optimizers import Scheduled
from lo_components.parametrization import SP
from lo_components.schedules import OptaxSchedule, WarmUpAndDecay
from lo_components.unroll import GradientStep, LocalRound

WORKERS, LOCAL_STEPS, LOCAL_BATCH, LOCAL_RATE = 8, 4, 128, 0.5
MUON_RATE, MUON_LOCAL_RATE = 0.01, 0.3  # with which `outer_residual_muon` was meta-trained
WIDTH, PIXELS = 32, 64  # of the network on which aggregators are meta-trained
LOCAL_RATES, FEWER_LOCAL_RATES, SMALL_LOCAL_RATES = (1.0, 0.5, 0.3, 0.1), (0.5, 0.3, 0.1), (0.5, 0.3, 0.1, 0.03, 0.01)
RATES = tuple(m * 10.0**e for e in (-1, -2, -3, -4, -5) for m in (5, 1)) + (1.0,)
MOMENTA = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
# By name: a fine grid, the paper's if it has one; a coarse grid; and a function from the number of rounds and a
# configuration to an aggregator. The first number of a configuration is the local learning rate.
AGGREGATORS = {
    "local SGD": ((LOCAL_RATES,), (LOCAL_RATES,), lambda rounds: Mean()),
    "SlowMo": (
        (LOCAL_RATES, MOMENTA, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)),
        (FEWER_LOCAL_RATES, (0.5, 0.65, 0.8, 0.9, 0.95), (0.5, 0.75, 1.0, 1.25, 1.5)),
        lambda rounds, beta, alpha: SlowMo(beta, alpha),
    ),
    "outer Nesterov": (
        (LOCAL_RATES, (0.3, 0.5, 0.7, 1.0), (0.5, 0.7, 0.8, 0.9, 0.95)),
        (FEWER_LOCAL_RATES, (0.5, 0.7, 1.0, 1.3), (0.7, 0.8, 0.9, 0.95)),
        lambda rounds, rate, momentum: OuterOptimizer(nesterov(rate, momentum)),
    ),
    "outer Nesterov, decay": (
        (LOCAL_RATES, (0.3, 0.5, 0.7, 1.0), (0.5, 0.7, 0.8, 0.9, 0.95)),
        (FEWER_LOCAL_RATES, (0.7, 1.0), (0.8, 0.9)),
        lambda rounds, rate, momentum: OuterOptimizer(
            Scheduled(nesterov(rate, momentum), OptaxSchedule(optax.linear_schedule, 1.0, 0.0, rounds))
        ),
    ),
    "outer Adam": (
        (LOCAL_RATES, RATES),
        (LOCAL_RATES, (0.01, 0.001)),
        lambda rounds, rate: OuterOptimizer(loc.OptaxOptimizer(optax.adam, rate)),
    ),
    "outer Muon": (
        (SMALL_LOCAL_RATES, (0.0025, 0.005, 0.01, 0.02, 0.04)),
        (SMALL_LOCAL_RATES, (0.005, 0.01, 0.02)),
        lambda rounds, rate: OuterOptimizer(loc.recipes.rms_muon(rate)),
    ),
}
MUON = ("outer_residual_muon", "residual_muon")
# Optimizers whose step takes as many samples as a round of the aggregators.
STEPWISE = {"SGD": optax.sgd, "Adam": optax.adam}
BASELINES = (*AGGREGATORS, *STEPWISE)


def meta_trained_mlp(dataset, width: int = WIDTH, **options):
    """The MLP of meta-training, or a wider one; the multipliers of muP are 1 at the sizes of meta-training."""
    return mlp(dataset, width, 2, LOCAL_BATCH, base_width=WIDTH, base_in_size=PIXELS, **options)


def nesterov(rate, momentum):
    return loc.OptaxOptimizer(optax.sgd, rate, momentum=momentum, nesterov=True)


def local_round(workers: int, steps: int, rate):
    return LocalRound(workers, steps, loc.OptaxOptimizer(optax.sgd, rate))


def learned(name: str, workers: int, steps: int, weights):
    """A learned aggregator and its rounds; those of the LAgg-A paper are from the folder `weights`, or the package."""
    if name not in MUON:
        return load(name, weights), local_round(workers, steps, LOCAL_RATE)
    aggregator = load(name, None)
    if name == "residual_muon":  # where the meta-training of `outer_residual_muon` starts
        schedule = WarmUpAndDecay(MUON_RATE, reference_steps=1000)
        aggregator = OuterOptimizer(eqx.tree_at(lambda x: x.schedule, aggregator, schedule))
    return aggregator, local_round(workers, steps, MUON_LOCAL_RATE)


def baselines(names: Sequence[str], workers: int, steps: int, coarse: bool, batch: int) -> dict[str, Optimizer]:
    """Baselines that are tuned on each task, by name."""
    return {name: baseline(name, workers, steps, coarse, batch) for name in names}


def baseline(name: str, workers: int, steps: int, coarse: bool, batch: int) -> Optimizer:
    if name in STEPWISE:
        make = lambda _, rate: (loc.OptaxOptimizer(STEPWISE[name], rate), GradientStep())  # noqa: E731
        of = {"parametrization": SP(), "batch_size": batch * workers * steps}
        return Optimizer(make, name, of, [(rate,) for rate in RATES])
    fine, few, aggregator = AGGREGATORS[name]
    make = lambda rounds, rate, *rest: (aggregator(rounds, *rest), local_round(workers, steps, rate))  # noqa: E731
    of = {"parametrization": SP(), "batch_size": batch}
    return Optimizer(make, [name, workers, steps], of, list(itertools.product(*(few if coarse else fine))))
