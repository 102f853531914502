"""Learned optimizers in the training loops of Flax and Haiku, saved with Orbax and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lo_components import as_optax, recipes
from lo_components.optimizers import Scaled
from lo_components.parametrization import SCALE_FREE, Absorbed, MuP, infer_widths, reinitialize

REASON = "needs Flax and Haiku: `pip install lo-components[frameworks]`"
nnx = pytest.importorskip("flax.nnx", reason=REASON)
linen = pytest.importorskip("flax.linen", reason=REASON)
serialization = pytest.importorskip("flax.serialization", reason=REASON)
train_state = pytest.importorskip("flax.training.train_state", reason=REASON)
haiku = pytest.importorskip("haiku", reason=REASON)
orbax = pytest.importorskip("orbax.checkpoint", reason=REASON)

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WIDTH, STEPS = 16, 6
MUP = Absorbed(MuP())


def _batch(t):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (8, 4))
    return x, x[:, :2] ** 2


def _mean_squares(prediction, y):
    return jnp.mean(jnp.square(prediction - y))


def _transformation(widths):
    """A learned optimizer under muP, with clipping and a schedule around it."""
    learned = recipes.small_fc_lopt(hidden_size=2, key=jax.random.key(1))
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        as_optax(Scaled(learned, MUP.update_scales(widths, SCALE_FREE))),
        optax.scale_by_schedule(optax.linear_schedule(1.0, 0.1, STEPS)),
    )


def _through_orbax(tree, folder):
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", jax.tree.map(jnp.zeros_like, tree))


class Linen(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            x = linen.relu(linen.Dense(self.width)(x))
        return linen.Dense(2)(x)


def _linen(width):
    return Linen(width).init(jax.random.key(2), jnp.zeros((1, 4)))["params"]


def _haiku_network(width):
    return haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([width, width, 2])(x)))


def _haiku(width):
    return _haiku_network(width).init(jax.random.key(2), jnp.zeros((1, 4)))


NETWORKS = {
    "linen": (_linen, lambda params, x: Linen(WIDTH).apply({"params": params}, x), "Dense_1"),
    "haiku": (_haiku, lambda params, x: _haiku_network(WIDTH).apply(params, x), "mlp/~/linear_1"),
}


@pytest.mark.parametrize("framework", NETWORKS)
def test_a_run_with_a_frozen_layer_goes_on_from_an_orbax_checkpoint(framework, tmp_path):
    build, apply, frozen = NETWORKS[framework]
    widths = infer_widths(build, 8, 12, WIDTH, layout="in_out")
    params = reinitialize(build(WIDTH), widths, MUP, key=jax.random.key(3))
    labels = {layer: jax.tree.map(lambda _, layer=layer: layer != frozen, arrays) for layer, arrays in params.items()}
    transformation = optax.partition({True: _transformation(widths), False: optax.set_to_zero()}, labels)

    @jax.jit
    def step(params, state, t):
        x, y = _batch(t)
        loss, grads = jax.value_and_grad(lambda p: _mean_squares(apply(p, x), y))(params)
        updates, state = transformation.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    run, start = (params, transformation.init(params)), params
    for t in range(STEPS):
        if t == STEPS // 2:
            resumed = _through_orbax(run, tmp_path)
        run = step(*run, t)
        if t >= STEPS // 2:
            resumed = step(*resumed, t)
    for a, b in zip(jax.tree.leaves(run), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), run[0], start)
    assert {layer: any(arrays.values()) for layer, arrays in moved.items()} == {n: n != frozen for n in start}


def test_a_train_state_of_linen_is_serialized_and_goes_on():
    widths = infer_widths(_linen, 8, 12, WIDTH, layout="in_out")
    state = train_state.TrainState.create(apply_fn=Linen(WIDTH).apply, params=_linen(WIDTH), tx=_transformation(widths))

    @jax.jit
    def step(state, t):
        x, y = _batch(t)
        grads = jax.grad(lambda p: _mean_squares(state.apply_fn({"params": p}, x), y))(state.params)
        return state.apply_gradients(grads=grads)

    state = step(step(state, 0), 1)
    restored = serialization.from_bytes(jax.tree.map(jnp.zeros_like, state), serialization.to_bytes(state))
    for a, b in zip(jax.tree.leaves(step(state, 2)), jax.tree.leaves(step(restored, 2)), strict=True):
        np.testing.assert_array_equal(a, b)


class NNX(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.middle(nnx.relu(self.first(x)))))


TRAINABLE = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("middle")))


@nnx.jit
def _nnx_step(model, optimizer, x, y):
    wrt = nnx.DiffState(0, TRAINABLE)
    loss, grads = nnx.value_and_grad(lambda m: _mean_squares(m(x), y), argnums=wrt)(model)
    optimizer.update(model, grads, value=loss)
    return loss


@pytest.mark.parametrize("pure", [True, False])
def test_the_optimizer_of_nnx_trains_a_part_of_a_model_and_goes_on_from_a_copy(pure, tmp_path):
    def build(width):
        state = nnx.state(NNX(width, nnx.Rngs(0)), TRAINABLE)
        return nnx.as_pure(state) if pure else state

    widths = infer_widths(build, 8, 12, WIDTH, layout="in_out")
    transformation = _transformation(widths)
    model, other = NNX(WIDTH, nnx.Rngs(0)), NNX(WIDTH, nnx.Rngs(1))
    optimizer, other_optimizer = (nnx.Optimizer(m, transformation, wrt=TRAINABLE) for m in (model, other))
    middle = jnp.array(model.middle.kernel[...])
    for t in range(3):
        _nnx_step(model, optimizer, *_batch(t))
    assert np.any(model.first.kernel[...] != NNX(WIDTH, nnx.Rngs(0)).first.kernel[...])
    np.testing.assert_array_equal(model.middle.kernel[...], middle)
    saved = _through_orbax(nnx.to_pure_dict(nnx.state((model, optimizer))), tmp_path)
    state = nnx.state((other, other_optimizer))
    nnx.replace_by_pure_dict(state, saved)
    nnx.update((other, other_optimizer), state)
    losses = [(_nnx_step(model, optimizer, *_batch(t)), _nnx_step(other, other_optimizer, *_batch(t))) for t in (3, 4)]
    assert all(a == b for a, b in losses)
