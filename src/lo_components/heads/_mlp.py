import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..accumulators import TensorView
from ..features import Channels
from ._base import AbstractHead, check_channels, full_shape

# Written out element by element, a small network fuses with the features into one loop, which XLA runs in parallel.
# A larger one is better off as matrix products over stacked channels, evaluated block by block on large tensors. On
# tensors of medium size, as in meta-training, writing it out pays longer; on small ones it takes longer to compile than
# it saves, and in a loop over blocks it is not vectorized (benchmarks/update.py, benchmarks/pes.py).
_MAX_UNROLLED = 160
_MAX_UNROLLED_MEDIUM = 600
_MEDIUM = range(2**12, 2**15)
# Multiply-adds are counted with the channels of full size of small_fc_lopt; those that broadcast are cheap.
_FULL_SIZE_CHANNELS = 16


class MLPHead(AbstractHead):
    r"""A ReLU multi-layer perceptron over the channels of each parameter.

    $h_0 = W_0^\top (s \odot x) + b_0$ with the channels' lazy scales $s$ folded into $W_0$. Row, column and time
    channels are multiplied by $W_0$ before they are broadcast. Weights are sampled from a normal distribution of
    standard deviation $1/\sqrt{\text{fan-in}}$, truncated at two standard deviations. Biases start at zero.

    ??? cite "Source"
        The per-parameter network of small_fc_lopt (google/learned_optimization, `AdafacMLPLOpt`).
    """

    weights: tuple[Float[Array, "fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]

    def __init__(
        self, in_size: int, out_size: int, *, hidden_size: int = 32, hidden_layers: int = 2, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `in_size`: the number of input channels.
        - `out_size`: the number of output channels.
        - `hidden_size`: the number of units per hidden layer.
        - `hidden_layers`: the number of hidden layers, at least 1.
        - `key`: for the initial weights.

        Raises `ValueError` if one of the sizes is below 1.
        """
        if min(in_size, out_size, hidden_size, hidden_layers) < 1:
            raise ValueError(
                "`in_size`, `out_size`, `hidden_size` and `hidden_layers` must be at least 1, got "
                f"{in_size}, {out_size}, {hidden_size} and {hidden_layers}."
            )
        sizes = [in_size, *[hidden_size] * hidden_layers, out_size]
        keys = jax.random.split(key, len(sizes) - 1)
        self.weights = tuple(
            jax.random.truncated_normal(k, -2.0, 2.0, (n, m), jnp.float32) / math.sqrt(n)
            for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
        )
        self.biases = tuple(jnp.zeros(m, jnp.float32) for m in sizes[1:])

    @property
    def in_size(self) -> int:
        return self.weights[0].shape[0]

    @property
    def out_size(self) -> int:
        return self.weights[-1].shape[1]

    @property
    def _multiply_adds(self) -> int:
        inputs = min(self.in_size, _FULL_SIZE_CHANNELS)
        return inputs * self.weights[0].shape[1] + sum(w.size for w in self.weights[1:])

    @property
    def blockwise(self) -> bool:
        return self._multiply_adds > _MAX_UNROLLED

    def __call__(self, features: tuple[Channels, ...], view: TensorView) -> Float[Array, "out *#shape"]:
        check_channels(features, self.in_size)
        whole = view.size is None
        most = _MAX_UNROLLED_MEDIUM if whole and view.param.size in _MEDIUM else _MAX_UNROLLED
        return self._unrolled(features) if self._multiply_adds <= most else self._matmul(features)

    def _first_layer(self, features: tuple[Channels, ...]):
        """The full-size channels with their weights `[hidden, c]`, and the terms of the rest, each `[hidden, *#shape]`.

        One term is the bias; channels that broadcast in the same way are one term.
        """
        shape = full_shape(features)
        # Barriers, lest XLA fuse these small computations into the loop over the tensor and redo them per element.
        weights = jax.lax.optimization_barrier(self.weights[0].T * _scales(features)[None])
        full, groups, offset = [], {}, 0
        for channels in features:
            values, end = channels.values, offset + channels.values.shape[0]
            if values.shape[1:] == shape:
                full.append((values, weights[:, offset:end]))
            else:
                terms = [
                    x[None] * _trailing(w, len(shape)) for x, w in zip(values, weights[:, offset:end].T, strict=True)
                ]
                groups.setdefault(values.shape[1:], []).extend(terms)
            offset = end
        rest = [jax.lax.optimization_barrier(sum(terms)) for terms in groups.values()]
        return full, [_trailing(self.biases[0], len(shape)), *rest]

    def _unrolled(self, features: tuple[Channels, ...]) -> Float[Array, "out *#shape"]:
        full, rest = self._first_layer(features)
        # The terms of the rest are added one unit at a time, since their sum for all units would be a large array.
        hidden = [
            sum(term[j] for term in rest) + sum(x[i] * w[j, i] for x, w in full for i in range(x.shape[0]))
            for j in range(self.biases[0].size)
        ]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            active = [jax.nn.relu(x) for x in hidden]
            hidden = [bias[j] + sum(x * weight[i, j] for i, x in enumerate(active)) for j in range(weight.shape[1])]
        return jnp.stack(hidden)

    def _matmul(self, features: tuple[Channels, ...]) -> Float[Array, "out *#shape"]:
        full, rest = self._first_layer(features)
        hidden = functools.reduce(jnp.add, rest)
        if full:
            values = jnp.concatenate([v for v, _ in full])
            hidden = hidden + jnp.tensordot(jnp.concatenate([w for _, w in full], axis=1), values, axes=1)
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            # On CPUs, batches of small products are slow if a factor is transposed within the product.
            transposed = jax.lax.optimization_barrier(weight.T)
            hidden = jnp.tensordot(transposed, jax.nn.relu(hidden), axes=1) + _trailing(bias, hidden.ndim - 1)
        return hidden


def _scales(features: tuple[Channels, ...]) -> Float[Array, " c"]:
    """The lazy scale of every channel, 1 for channels without one."""
    counts = [c.values.shape[0] for c in features]
    squares = [
        jnp.ones(n, jnp.float32) if c.mean_square is None else c.mean_square
        for c, n in zip(features, counts, strict=True)
    ]
    # One square root for all channels: each operation on a few numbers costs as much as on many.
    eps = np.repeat([0.0 if c.mean_square is None else c.eps for c in features], counts).astype(np.float32)
    return jax.lax.rsqrt(jnp.concatenate(squares) + eps)


def _trailing(x: Float[Array, " c"], ndim: int) -> Float[Array, "c ..."]:
    return x.reshape((-1,) + (1,) * ndim)
