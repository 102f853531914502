import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead
from ._mlp import MLPHead


class MixedMLPHead(AbstractHead):
    r"""An MLP for each tensor whose weights are a mixture of those of several networks.

    With the first $K$ controls $c_k$ of the tensor and the weights $W_k$ of the networks, its weights (and biases) are
    $\frac{\alpha}{K} \sum_k c_k W_k$.

    ??? cite "Source"
        VeLO (arXiv 2211.09760).
    """

    networks: MLPHead
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_networks: int = 256,
        hidden_size: int = 4,
        hidden_layers: int = 2,
        scale: float = 100.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`, `out_size`, `hidden_size`, `hidden_layers`: of each network.
        - `num_networks`: $K$.
        - `scale`: $\\alpha$.
        - `key`: for the initial weights.
        """

        def network(key: PRNGKeyArray) -> MLPHead:
            return MLPHead(in_size, out_size, hidden_size=hidden_size, hidden_layers=hidden_layers, key=key)

        self.networks = eqx.filter_vmap(network)(jax.random.split(key, num_networks))
        self.scale = scale

    @property
    def num_networks(self) -> int:
        """The number of networks."""
        return self.networks.biases[0].shape[0]

    @property
    def in_size(self) -> int:
        return self.networks.weights[0].shape[1]

    @property
    def out_size(self) -> int:
        return self.networks.weights[-1].shape[2]

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        controls = view.required("controls")[: self.num_networks] * (self.scale / self.num_networks)
        mixed = jax.tree.map(lambda x: jnp.tensordot(controls, x, 1), self.networks)
        # A barrier, lest XLA mix the weights again for each element.
        return jax.lax.optimization_barrier(mixed)(features, view)
