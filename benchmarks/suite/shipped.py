"""The optimizers that this package ships, and published Celo2, as the suite runs them: `benchmarks.suite.shipped:NAME`.

`celo2` needs the path of its published weights in the environment variable `CELO2_WEIGHTS`.
"""

import os

import equinox as eqx
import optax

import lo_components as loc
from lo_components.optimizers import Partitioned, Scheduled
from lo_components.parametrization import MuP
from lo_components.schedules import OptaxSchedule

from .optimizers import Optimizer, warm_up_and_cosine
from .tasks import Growth

_RATES = (1e-3, 2e-3, 4e-3)


def _at(learner, rate):
    return eqx.tree_at(lambda x: x.schedule.peak, learner, rate)


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
rms_muon = Optimizer("rms_muon", lambda rate, horizon: loc.recipes.rms_muon(rate), _RATES, Growth(MuP()))
mulo_s, mulo_m, lo_s, lo_m = map(_as_it_is, ("mulo_s", "mulo_m", "lo_s", "lo_m"))


class _MatricesOnly(eqx.Module):
    """Celo2's matrices; it takes kernels in another layout than that of this library."""

    def __call__(self, path: str, param) -> bool:
        return param.ndim == 2 and "embed" not in path


def _celo2(rate, horizon):
    """Published weights of Celo2, for matrices; AdamW for all others; warm-up and cosine as for the baselines."""
    arrays = loc.interop.from_pylo("celo2", loc.weights.read_arrays(os.environ["CELO2_WEIGHTS"]))
    learned = loc.interop.from_reference("celo2", arrays, {"lr": 1.0})
    rest = loc.OptaxOptimizer(optax.adamw, 1.0, b1=0.9, b2=0.95, weight_decay=0.0)
    schedule = OptaxSchedule(warm_up_and_cosine, rate, horizon)
    return Scheduled(Partitioned(learned, rest, _MatricesOnly()), schedule)


celo2 = Optimizer("celo2", _celo2, (1e-3, 3e-3, 1e-2))
