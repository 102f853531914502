"""The optimizers that this package ships, as the suite runs them, by name."""

import equinox as eqx

import lo_components as loc
from lo_components.parametrization import MuP

from .optimizers import Optimizer
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
