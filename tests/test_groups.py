"""Small tensors are computed together, with the results of one at a time."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jaxtyping import Array, Float

import lo_components as loc
from lo_components.accumulators import AbstractAccumulator, FactoredSquares, Momentum
from lo_components.features import AbstractFeature, Channels, Concat, Gradient, Momenta, RMSNormalized, WorkerDeltas
from lo_components.heads import LinearHead
from lo_components.parametrization import SCALE_FREE, UpdateRule
from lo_components.pipeline import Pipeline, init_tree, update_tree
from lo_components.steps import AbstractStepRule, Direction

SHAPES = {
    "a": (4, 3), "b": (4, 3), "c": (3, 4), "stacked": (2, 4, 3),
    "bias": (3,), "long_bias": (200,), "one": (1,), "scalar": (), "another": (),
    "longer": (300,), "as_long": (300,), "empty": (0,), "half": (4, 3), "half_bias": (5,), "half_too": (7,),
}  # fmt: skip


class _Norm(NamedTuple):
    norm: Float[Array, " c"]


class _GradientNorm(AbstractAccumulator[_Norm]):
    produces: ClassVar = _Norm

    def init(self, param):
        return _Norm(jnp.zeros(1, jnp.float32))

    def update(self, view, state):
        return _Norm(0.5 * state.norm + jnp.sqrt(jnp.mean(jnp.square(view.grad)))[None])

    def read(self, state):
        return state


class _RelativeGradient(AbstractFeature):
    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=1, init=False, static=True)

    @property
    def requires(self):
        return frozenset({_Norm})

    def __call__(self, view):
        return (Channels(view.grad[None] / (1e-3 + view.spread(view.stat(_Norm).norm))),)


class _RelativeToMean(AbstractFeature):
    size: int = eqx.field(default=1, init=False, static=True)

    def __call__(self, view):
        return (Channels(view.grad[None] / jnp.mean(jnp.abs(view.grad))),)


class _NormalizedByItself(AbstractFeature):
    """Its mean squares count all that the view shows."""

    pointwise: ClassVar[bool] = True
    size: int = eqx.field(default=2, init=False, static=True)

    def __call__(self, view):
        x = jnp.stack([view.grad, view.grad * view.param])
        return (Channels(x, jnp.mean(x * x, axis=tuple(range(1, x.ndim))), 1e-5),)


class _UnitDirection(AbstractStepRule):
    in_size: int = eqx.field(default=1, init=False, static=True)
    pointwise: ClassVar[bool] = False
    update_rule: ClassVar[UpdateRule] = SCALE_FREE

    def __call__(self, out, view):
        return -out[0] / jnp.sqrt(1e-6 + jnp.mean(jnp.square(out[0])))


def _pipeline(accumulators, features, step_rule=Direction(1.0)):
    head = eqx.tree_at(lambda h: h.bias, LinearHead(features.size, 1, key=jax.random.key(0)), jnp.ones(1))
    return Pipeline(accumulators, features, head, step_rule)


class _Centered(loc.steps.AbstractTransform):
    def update_rule(self, rule, ndim):
        return rule

    def __call__(self, update, view):
        return update - jnp.mean(update)


PIPELINES = {
    "small": loc.recipes.small_fc_lopt(hidden_size=4, key=jax.random.key(0)).pipeline,
    "large head": loc.recipes.lolv2(key=jax.random.key(0)).pipeline,
    "workers": _pipeline(
        (Momentum((0.5,)), FactoredSquares((0.5,))), RMSNormalized(Concat(Gradient(), Momenta(1), WorkerDeltas(2)))
    ),
    "accumulator that reduces": _pipeline((_GradientNorm(),), RMSNormalized(_RelativeGradient())),
    "feature that reduces": _pipeline((), _RelativeToMean()),
    "feature with its own mean squares": _pipeline((), Concat(Gradient(), _NormalizedByItself())),
    "step rule that reduces": _pipeline((Momentum((0.5,)),), Concat(Gradient(), Momenta(1)), _UnitDirection()),
    "transform that reduces": eqx.tree_at(
        lambda p: p.transforms, loc.recipes.lolv2(hidden_size=2, key=jax.random.key(0)).pipeline, (_Centered(),)
    ),
}


def _arrays(key):
    dtypes = {name: jnp.bfloat16 if name.startswith("half") else jnp.float32 for name in SHAPES}
    keys = jax.random.split(key, len(SHAPES))
    return {
        name: (1.0 + i) * jax.random.normal(key, shape).astype(dtypes[name])
        for i, (key, (name, shape)) in enumerate(zip(keys, SHAPES.items(), strict=True))
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_each_result_is_that_of_the_tensor_alone(name, getkey):
    pipeline, params = PIPELINES[name], _arrays(getkey())
    grads = jax.tree.map(lambda *g: jnp.stack(g), *[_arrays(getkey()) for _ in range(2)])
    deltas = jax.tree.map(lambda g: g.astype(jnp.float32), grads) if name == "workers" else None

    @jax.jit
    def train(grads, params, deltas):
        def step(carry, grads):
            _, state = carry
            updates, state = update_tree(
                pipeline, grads, state, params, deltas=deltas, num_steps=jnp.asarray(9), loss=jnp.asarray(1.5)
            )
            return (updates, state), None

        (updates, state), _ = jax.lax.scan(step, (params, init_tree(pipeline, params)), grads)
        return updates, state.accumulators

    together = train(grads, params, deltas)
    # Under one name, so that tensors of one shape and dtype compile once.
    alone = lambda tree, key: None if tree is None else {"tensor": tree[key]}  # noqa: E731
    for key in SHAPES:
        expected = train(alone(grads, key), alone(params, key), alone(deltas, key))
        found = jax.tree.map(lambda x: alone(x, key), together, is_leaf=lambda x: isinstance(x, dict))  # noqa: B023
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
        assert_close(found, expected, rtol=2e-5, atol=1e-6)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(jax.tree.map(np.float32, found)))
