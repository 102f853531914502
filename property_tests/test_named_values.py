"""The coordinate check finds pre-activations in unmodified models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float
from networks import KEY, adam

from lo_components.meta import coordinate_check
from lo_components.nn import named_layers
from lo_components.parametrization import SP, Absorbed, AbstractParametrization, MuP, infer_widths, reinitialize
from lo_components.tasks import AbstractTask, Quadratic

WIDTHS = (16, 64)


class Mixer(eqx.Module):
    """A typical Equinox model: layers for one token, `jax.vmap` inside, and a block inside a scan."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    hidden: eqx.nn.Linear
    blocks: eqx.nn.Linear
    readout: eqx.nn.Linear

    def __init__(self, width, key):
        k = jax.random.split(key, 4)
        self.embed = eqx.nn.Linear(4, width, key=k[0])
        self.norm = eqx.nn.LayerNorm(width)
        self.hidden = eqx.nn.Linear(width, width, key=k[1])
        self.blocks = eqx.filter_vmap(lambda key: eqx.nn.Linear(width, width, key=key))(jax.random.split(k[2], 3))
        self.readout = eqx.nn.Linear(width, 2, key=k[3])

    def __call__(self, x):
        h = jax.vmap(self.norm)(jax.vmap(self.embed)(x))
        h = h + jax.vmap(self.hidden)(jax.nn.relu(h))
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)

        @jax.checkpoint
        def block(h, arrays):
            return h + jax.vmap(eqx.combine(arrays, rest))(jax.nn.relu(h)) / 3, None

        h, _ = jax.lax.scan(block, h, arrays)
        return self.readout(jnp.mean(h, axis=0))


class Regression(AbstractTask):
    """A regression from noise to noise."""

    model: eqx.Module
    widths: object
    parametrization: AbstractParametrization
    max_loss: float = np.inf

    def init(self, *, key):
        return eqx.filter(reinitialize(self.model, self.widths, self.parametrization, key=key), eqx.is_inexact_array)

    def batch(self, *, key, split="train", worker=None):
        return jax.random.normal(key, (16, 5, 4))

    def loss(self, params, batch, *, key):
        model = named_layers(eqx.combine(params, eqx.filter(self.model, eqx.is_inexact_array, inverse=True)))
        return jnp.mean(jnp.square(jax.vmap(model)(batch) - jnp.sum(batch, (1, 2))[:, None]))


def mixer_task(width, parametrization):
    build = lambda n: Mixer(n, KEY)  # noqa: E731
    widths = infer_widths(build, WIDTHS[0], 2 * WIDTHS[0], width)
    return Regression(build(width), widths, parametrization)


def check(task, num_seeds=16):
    with jax.numpy_dtype_promotion("standard"):
        return coordinate_check(adam(3e-3), task, widths=WIDTHS, num_steps=3, num_seeds=num_seeds, key=KEY)


def test_a_model_of_equinox_layers_with_inner_vmaps_and_a_scan():
    """The model is unmodified: names come from `named_layers`, declarations from shapes; multipliers are absorbed."""
    found = check(lambda width: mixer_task(width, Absorbed(MuP())))
    assert found.layers == ("blocks", "embed", "hidden", "readout")
    for layer, exponent in found.exponents().items():
        assert abs(exponent.value) < 0.1 + 3 * exponent.error, (layer, exponent)


class Plain(AbstractTask):
    """A model of functions and dictionaries with two named values."""

    width: int
    scale: Float[Array, ""]
    widths: None = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = np.inf
    name: str = eqx.field(default="hidden", static=True)

    def init(self, *, key):
        return {"a": jax.random.normal(key, (self.width, 4)), "b": jnp.zeros(self.width)}

    def batch(self, *, key, split="train", worker=None):
        return jax.random.normal(key, (16, 4))

    def loss(self, params, batch, *, key):
        hidden = checkpoint_name(batch @ params["a"].T, self.name)
        out = checkpoint_name(self.scale * jax.nn.relu(hidden) @ params["b"], "out")
        return jnp.mean(jnp.square(out - batch[:, 0]))


def test_a_function_that_names_values_by_hand():
    """Divided by the width, as under muP, the readout changes equally; otherwise in proportion to the width."""
    under_mup, plain = (
        check(lambda width, p=p: Plain(width, jnp.float32(p(width)))) for p in (lambda n: 1 / n, lambda n: 1.0)
    )
    assert under_mup.layers == plain.layers == ("hidden", "out")
    assert under_mup.exponents(0)["hidden"] is None
    value, error = under_mup.exponents(0)["out"]
    assert abs(value) < 0.1 + 3 * error
    # The networks, and so Adam's first steps, are the same.
    assert plain.exponents(0)["out"].value == pytest.approx(value + 1, abs=1e-3)


def test_recorded_changes_are_those_of_the_values_that_are_named():
    """Compared with the same quantity computed by hand, for every step of one seed."""
    found = check(lambda width: Plain(width, jnp.float32(1 / width)), num_seeds=1)
    assert found.changes.shape == (2, 1, 3, 2)
    task, optimizer = Plain(16, jnp.float32(1 / 16)), adam(3e-3)
    seed_key = jax.random.fold_in(KEY, 0)
    init_key, steps_key = jax.random.split(seed_key)
    probe_key, _ = jax.random.split(jax.random.fold_in(seed_key, 2))
    params = start = task.init(key=init_key)
    probe, state = task.batch(key=probe_key), optimizer.init(params)
    for t, step_key in enumerate(jax.random.split(steps_key, 4)[:3]):
        batch_key, key = jax.random.split(step_key)
        grads = jax.grad(task.loss)(params, task.batch(key=batch_key), key=key)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        hidden = jnp.sqrt(jnp.mean(jnp.square(probe @ (params["a"] - start["a"]).T)))
        np.testing.assert_allclose(found.changes[0, 0, t, 0], hidden, rtol=1e-3, atol=1e-7)


def test_nothing_named_is_an_error_and_so_are_other_names_at_another_width():
    quadratic = Quadratic(jnp.ones(3))
    with pytest.raises(ValueError, match="`task` has no named values"):
        check(lambda width: quadratic)
    with pytest.raises(ValueError, match="other layers at width 64"):
        check(lambda width: Plain(width, jnp.float32(1), name=f"hidden {width}"), num_seeds=1)
