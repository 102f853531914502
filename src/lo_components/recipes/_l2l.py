import jax
from jaxtyping import PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..heads import LinearHead
from ..optimizers import LearnedOptimizer
from ..pipeline import Pipeline
from ..steps import Direction


def l2l_lstm(
    *,
    inputs: ft.AbstractFeature = ft.LogAndSign(5.0),
    sizes: tuple[int, ...] = (20, 20),
    scale: float = 0.01,
    key: PRNGKeyArray,
) -> LearnedOptimizer:
    """The first LSTM optimizer: a recurrent network that sees the gradients of each parameter alone.

    **Arguments:**

    - `inputs`: what it sees. The paper has `LogAndSign(10.0)`, the authors' code 5; `Gradient()` is no preprocessing.
    - `sizes`: the number of units of each layer.
    - `scale`: multiplies the output, which is added to the parameter.
    - `key`: for the initial weights.

    ??? cite "Source"
        Andrychowicz et al., *Learning to learn by gradient descent by gradient descent* (arXiv 1606.04474);
        google-deepmind/learning-to-learn.
    """
    network_key, head_key = jax.random.split(key)
    network = acc.RecurrentNetwork(inputs, sizes, key=network_key)
    head = LinearHead(sizes[-1], 1, key=head_key)
    return LearnedOptimizer(Pipeline((network,), ft.Recurrent(sizes[-1]), head, Direction(-scale)))
