"""Whether features can be evaluated in blocks of rows, by trying it on a small tensor."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ..accumulators import AbstractAccumulator, TensorView
from ..features import AbstractFeature, Channels

_SHAPE = (4, 3, 2)  # of the small tensor, as far as it has axes; further axes have size 1


def are_pointwise(features: AbstractFeature, accumulators: tuple[AbstractAccumulator, ...], view: TensorView) -> bool:
    """Whether features of rows of a tensor are rows of its features. If that cannot be tried, it counts as false.

    All features of this package are pointwise, as the contract tests check, so only others are tried, which takes about
    half a second per process. Learned arrays that are traced are replaced by random ones.
    """
    if not any(map(_is_foreign, jax.tree.leaves(features, is_leaf=_is_foreign))):
        return True
    shape = (*_SHAPE, *(1 for _ in view.param.shape))[: view.param.ndim]
    rng = np.random.default_rng(0)

    def sampled(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def concrete(x):
        return jnp.asarray(0.1 * sampled(*x.shape), x.dtype) if isinstance(x, Tracer) else x

    try:
        with jax.ensure_compile_time_eval():
            small = TensorView(
                param=jnp.asarray(sampled(*shape)),
                grad=jnp.asarray(sampled(*shape)),
                stats=(),
                step=jnp.asarray(3, jnp.int32),
                num_steps=None if view.num_steps is None else jnp.asarray(100, jnp.int32),
                loss=None if view.loss is None else jnp.asarray(1.0, jnp.float32),
                deltas=None if view.deltas is None else jnp.asarray(sampled(len(view.deltas), *shape)),
            )
            features, accumulators = jax.tree.map(concrete, (features, accumulators))
            whole, rows = jax.tree.map(np.asarray, _tried(features, accumulators, small))
    except Exception:  # a part of the user's may fail in any way on a tensor of this shape
        return False
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(whole, rows, strict=True))


def _is_foreign(node: Any) -> bool:
    return isinstance(node, AbstractFeature) and not type(node).__module__.startswith("lo_components.")


@eqx.filter_jit
def _tried(
    features: AbstractFeature, accumulators: tuple[AbstractAccumulator, ...], view: TensorView
) -> tuple[list[Array], list[Array]]:
    """The values and the sums of squares of all channels, for the whole tensor and put together from its rows."""
    states = tuple(a.update(view, a.init(view.param)) for a in accumulators)
    view = eqx.tree_at(lambda v: v.stats, view, tuple(a.read(s) for a, s in zip(accumulators, states, strict=True)))
    num_rows = view.param.shape[0]
    whole = features(view)
    first, second = (features(view.rows(jnp.asarray(start), num_rows // 2)) for start in (0, num_rows // 2))
    joined = [_joined(w, a, b, num_rows) for w, a, b in zip(whole, first, second, strict=True)]
    return jax.tree.leaves(whole), jax.tree.leaves(joined)


def _joined(whole: Channels, first: Channels, second: Channels, num_rows: int) -> Channels:
    """The channels of the whole tensor, put together from those of its halves."""
    if whole.values.shape[1] != num_rows:
        return second
    values = jnp.concatenate([first.values, second.values], axis=1)
    sums = jax.tree.map(jnp.add, first.square_sum, second.square_sum)
    return Channels(values, sums, whole.count, whole.eps)
