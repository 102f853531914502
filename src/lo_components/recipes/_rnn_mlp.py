import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..controllers import NormSummary
from ..heads import LeadingOutputs, MLPHead
from ..optimizers import RNNMLP, ClippedAdaptively
from ..pipeline import Pipeline
from ..schedules import LSTM, Linear
from ..steps import DirectionMagnitude


def rnn_mlp(
    *,
    lstm_size: int = 64,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    from_mlp: int = 16,
    from_lstm: int = 18,
    to_mlp: int = 17,
    decays: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999, 0.9999),
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    key: PRNGKeyArray,
) -> ClippedAdaptively:
    """The optimizer RNN-MLP: a recurrent network for each tensor and an MLP for each parameter. Needs the loss.

    **Arguments:**

    - `lstm_size`: the number of units of the recurrent network.
    - `hidden_size`, `hidden_layers`: of the MLP.
    - `from_mlp`, `from_lstm`, `to_mlp`: the sizes of messages from the MLP to the recurrent network, from this to all
        its rows, and from this to the MLP.
    - `decays`: of the momenta and of the second moments.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][].
    - `key`: for the initial weights.

    ??? cite "Source"
        Metz et al., *Tasks, stability, architecture, and compute* (arXiv 2009.11243).
    """
    count = len(decays)
    normalized = ft.Concat(
        ft.Gradient(),
        ft.Parameter(),
        ft.LogParameter(),
        ft.Momenta(count),
        ft.Squares(count),
        ft.NormalizedMomenta(count, eps=1e-6),
        ft.InverseRoot(ft.Squares(count), eps=1e-6),
    )
    features = ft.Concat(ft.RMSNormalized(normalized, eps=1e-5), ft.SineEmbedding(), ft.Controls(3 + to_mlp))
    mlp, lstm, mlp_message, lstm_message, first_mlp, first_lstm = jax.random.split(key, 6)
    head = MLPHead(features.size, 2 + from_mlp, hidden_size=hidden_size, hidden_layers=hidden_layers, key=mlp)
    pipeline = Pipeline(
        (acc.Momentum(decays), acc.SquaredMomentum(decays)),
        features,
        LeadingOutputs(head, 2),
        DirectionMagnitude(step_mult, exp_mult),
    )
    # The summary, without its last number; whether it is a scalar, and four sizes; two losses.
    in_size = from_lstm + from_mlp + (NormSummary().size - 1) + 5 + 2

    def first(key: PRNGKeyArray, size: int):
        return jax.random.truncated_normal(key, -2.0, 2.0, (size,), jnp.float32) / (0.87962566 * size**0.5)

    recurrent = LSTM(in_size, lstm_size, key=lstm)
    optimizer = RNNMLP(
        pipeline,
        recurrent,
        Linear(lstm_size, to_mlp, key=mlp_message),
        Linear(lstm_size, from_lstm, key=lstm_message),
        recurrent.zeros(),
        first(first_mlp, from_mlp),
        first(first_lstm, from_lstm),
    )
    return ClippedAdaptively(optimizer)
