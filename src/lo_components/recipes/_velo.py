import jax
from jaxtyping import PRNGKeyArray

from .. import features as ft
from ..controllers import MixingController, MomentSummary
from ..heads import MixedMLPHead
from ..optimizers import ClippedByValue, ControlledOptimizer
from ..pipeline import Pipeline
from ..schedules import LossBuffer
from ..steps import DirectionMagnitude, RelativeToParameter, TimesLastControl
from ._celo import accumulators, velo_features


def velo(
    *,
    lstm_size: int = 512,
    num_networks: int = 256,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    scale: float = 100.0,
    buffer: LossBuffer = LossBuffer(),
    recurrent: bool = True,
    key: PRNGKeyArray,
) -> ClippedByValue:
    """The optimizer VeLO: a recurrent network for each tensor mixes the weights of the MLP that updates it.

    Needs loss and `num_steps`.

    **Arguments:**

    - `lstm_size`: the number of units of the recurrent network.
    - `num_networks`: the number of MLPs that are mixed.
    - `hidden_size`, `hidden_layers`: of each MLP.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `scale`: multiplies the mixed weights; 1 in VeLO-S.
    - `buffer`, `recurrent`: see [`lo_components.controllers.MixingController`][].
    - `key`: for the initial weights.

    **Returns:** the optimizer, with random weights.

    ??? cite "Source"
        Metz et al., *VeLO: Training Versatile Learned Optimizers by Scaling Up* (arXiv 2211.09760).
    """
    features = ft.RMSNormalized(ft.Concat(*velo_features(1e-6)), eps=1e-5)
    summary = MomentSummary()
    options = {"hidden_size": hidden_size, "hidden_layers": hidden_layers}
    head_key, controller_key = jax.random.split(key)
    head = MixedMLPHead(features.size, 2, num_networks=num_networks, scale=scale, key=head_key, **options)
    controller = MixingController(
        summary.size, num_networks + 1, lstm_size, buffer=buffer, recurrent=recurrent, key=controller_key
    )
    transforms = (RelativeToParameter(), TimesLastControl())
    pipeline = Pipeline(accumulators(0.999), features, head, DirectionMagnitude(step_mult, exp_mult), transforms)
    return ClippedByValue(ControlledOptimizer(controller, summary, pipeline))
