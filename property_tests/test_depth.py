"""Under DepthMuP the change of the function does not depend on the depth; under MuP alone it grows with the depth.

Only residual branches are trained here. Each of L residual blocks changes by the same amount, in similar directions,
and is multiplied by the branch multiplier. With exponent 1 there are L changes of size 1/L, with exponent a there are L
changes of size `L**-a * L**(a - 1)`. Without multipliers they add up to L, and the residual stream grows as well.

The bound is three standard errors plus 0.1. At initialization each block increases the squared norm of the residual
stream by a factor of 1 + m^2 / 2, with the multiplier m = L^-a, so all blocks increase it by exp(L^(1 - 2a) / 2). At L
= 4 that is 13 % more than in the limit for exponent 1, and 28 % for exponent 3/4. Adam's change is proportional to its
square root and SGD's to the factor itself, which over log(8) is an exponent of -0.03 (Adam) to -0.1 (SGD, 3/4). A
missing multiplier changes the exponent by 1/2 or more.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st
from networks import CLASSES, KEY, AdamOrSGD
from strategies import log_floats, seeds

from lo_components.nn import Linear, declared_widths
from lo_components.parametrization import PROPORTIONAL, SCALE_FREE, Axis, DepthMuP, MuP

WIDTH = 16
DEPTHS = (4, 32)
adam_or_sgd = st.booleans()


class Residual(eqx.Module):
    """Stacked residual blocks of two layers each, so that programs of all depths differ only in one size."""

    first: Linear
    blocks: tuple[Linear, Linear]
    readout: Linear

    def __init__(self, depth, key):
        width, p = Axis.growing(WIDTH, WIDTH), MuP(bias_std=0.0)
        keys = jax.random.split(key, 3)
        self.first = Linear(8, width, parametrization=p, key=keys[0])
        self.blocks = eqx.filter_vmap(
            lambda k: tuple(Linear(width, width, parametrization=p, residual=True, key=k) for k in jax.random.split(k))
        )(jax.random.split(keys[1], depth))
        self.readout = Linear(width, CLASSES, parametrization=p, key=keys[2])
        self.readout = eqx.tree_at(lambda n: n.weight, self.readout, jax.random.normal(keys[2], (CLASSES, WIDTH)) / 4)

    def __call__(self, x, multiplier):
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)

        def block(x, arrays):
            inner, outer = eqx.combine(arrays, rest)
            return x + multiplier * outer(jax.nn.relu(inner(x))), None

        x, _ = jax.lax.scan(block, self.first(x), arrays)
        return self.readout(x)


@eqx.filter_jit
def change_of_the_function(depth, multiplier, scales, optimizer, key):
    """The root mean square change over examples and classes after three steps, for eight initializations."""
    x = jax.random.normal(jax.random.key(1), (16, 8))
    classes = jnp.arange(16) % CLASSES

    def one(key):
        params, rest = eqx.partition(Residual(depth, key), eqx.is_inexact_array)
        outputs = lambda p: jax.vmap(lambda v: eqx.combine(p, rest)(v, multiplier))(x)  # noqa: E731

        def loss(params):
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs(params), classes))

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (jax.tree.map(lambda p, s, u: p + s * u, params, scales, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 3)
        return jnp.sqrt(jnp.mean(jnp.square(outputs(trained) - outputs(params))))

    return jax.vmap(one)(jax.random.split(key, 8))


def exponent(make, by_adam, rate, seed) -> tuple[float, float]:
    """The exponent of the function's change in the depth, and its standard error, for `make(depth)`."""
    optimizer, rule = AdamOrSGD(jnp.float32(rate), jnp.asarray(by_adam)), SCALE_FREE if by_adam else PROPORTIONAL
    changes = []
    for depth in DEPTHS:
        p = make(depth)
        model = eqx.filter_eval_shape(Residual, depth, KEY)
        scales = jax.tree.map(
            lambda w, p=p: jnp.float32(p.update_scale(w, rule) if w.residual else 0.0), declared_widths(model)
        )
        with jax.numpy_dtype_promotion("standard"):
            multiplier = jnp.float32(p.residual_multiplier)
            changes.append(change_of_the_function(depth, multiplier, scales, optimizer, jax.random.key(seed)))
    slopes = np.polyfit(np.log(DEPTHS), np.log(changes), 1)[0]
    return float(np.mean(slopes)), float(np.std(slopes, ddof=1) / len(slopes) ** 0.5)


@given(seeds, log_floats(1e-3, 1e-2), adam_or_sgd, st.sampled_from([0.5, 0.75, 1.0]))
def test_under_depth_mup_the_function_moves_as_much_at_every_depth(seed, rate, by_adam, alpha):
    make = lambda depth: DepthMuP(depth, exponent=alpha, mup=MuP(bias_std=0.0))  # noqa: E731
    value, error = exponent(make, by_adam, rate, seed)
    assert abs(value) < 0.1 + 3 * error, (value, error)


@given(seeds, log_floats(1e-4, 1e-3), adam_or_sgd)
def test_without_depth_mup_it_moves_more_in_deep_networks(seed, rate, by_adam):
    value, _ = exponent(lambda depth: MuP(bias_std=0.0), by_adam, rate, seed)
    assert value > 0.5
