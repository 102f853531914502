"""The optimizers that this package ships, and published ones, as the suite runs them: `benchmarks.suite.shipped:NAME`.

The published ones read their weights from the folder in the environment variable `PUBLISHED_WEIGHTS`:
`celo.theta.state` and `celo_adam.theta.state` of amoudgl/celo, `sinv6.theta.state` of
mlcommons/submissions_algorithms, and `celo2_weights.pt` of pylo.
"""

import os
from pathlib import Path

import equinox as eqx
import optax

import lo_components as loc
from lo_components.optimizers import Partitioned, Scheduled
from lo_components.schedules import OptaxSchedule, WarmUpAndDecay

from .optimizers import Optimizer, warm_up_and_cosine
from .tasks import Growth

_RATES = (1e-3, 3e-3, 1e-2)


def _at(learner, rate):
    """With this learning rate, however long training is."""
    return eqx.tree_at(lambda x: x.schedule, learner, WarmUpAndDecay(rate))


def _slower(factor: float):
    """`residual_muon` at a fraction of its default learning rate."""
    learner = loc.pretrained("residual_muon")
    return eqx.tree_at(lambda x: x.schedule.peak, learner, factor * learner.schedule.peak)


def _as_it_is(name: str) -> Optimizer:
    """A pretrained optimizer, on models under the parametrization of its card; its learning rate is not tuned."""
    card = loc.pretrained.card(name)
    growth = Growth(card.parametrization, card.base_width, card.base_in_size)
    return Optimizer(name, lambda rate, horizon: loc.pretrained(name), growth=growth)


residual_muon = _as_it_is("residual_muon")
residual_muon_tuned = Optimizer(
    "residual_muon_tuned",
    lambda rate, horizon: _at(loc.pretrained("residual_muon"), rate),
    _RATES,
    residual_muon.growth,
)
residual_muon_sp = Optimizer("residual_muon_sp", residual_muon.make)  # in networks that know nothing of muP
residual_muon_sp_quarter = Optimizer("residual_muon_sp_quarter", lambda rate, horizon: _slower(0.25))
rms_muon = Optimizer("rms_muon", lambda rate, horizon: loc.recipes.rms_muon(rate), _RATES, residual_muon.growth)
mulo, mulo_s, mulo_m, lo_s, lo_m = map(_as_it_is, ("mulo", "mulo_s", "mulo_m", "lo_s", "lo_m"))


def _arrays(file: str):
    return loc.weights.read_arrays(Path(os.environ["PUBLISHED_WEIGHTS"]) / file)


def _published(kind: str) -> Optimizer:
    """Published weights, which choose their own step sizes."""
    return Optimizer(kind, lambda rate, horizon: loc.interop.from_reference(kind, _arrays(f"{kind}.theta.state"), {}))


celo, celo_adam, sinv6 = map(_published, ("celo", "celo_adam", "sinv6"))


class _MatricesOnly(eqx.Module):
    """Celo2's matrices; it takes kernels in another layout than that of this library."""

    def __call__(self, path: str, param) -> bool:
        return param.ndim == 2 and "embed" not in path


def _celo2(rate, horizon):
    """Published weights of Celo2, for matrices; AdamW for all others; warm-up and cosine as for the baselines."""
    arrays = loc.interop.from_pylo("celo2", _arrays("celo2_weights.pt"))
    learned = loc.interop.from_reference("celo2", arrays, {"lr": 1.0})
    rest = loc.OptaxOptimizer(optax.adamw, 1.0, b1=0.9, b2=0.95, weight_decay=0.0)
    schedule = OptaxSchedule(warm_up_and_cosine, rate, horizon)
    return Scheduled(Partitioned(learned, rest, _MatricesOnly()), schedule)


celo2 = Optimizer("celo2", _celo2, (1e-3, 3e-3, 1e-2))
