"""How the change of pre-activations in the first steps depends on the width: exponent 0 under muP, above 0.5 under SP.

**Derivation of the bounds.** The fitted exponent of a layer is the mean over seeds of the slopes of `log(change)` over
`log(width)`. It differs from the exponent at infinite width by

- a standard error, which the check reports: three of them are allowed;
- a bias: the mean of a logarithm lies below the logarithm of the mean by half the relative variance, which falls as
  1 / width. The variance of `log(change)` over seeds is measured at the narrowest width. Divided by the range of
  `log(width)`, it is twice the bias; the other half allows for 1 / width corrections to the change itself, which are of
  the same order;
- `ALLOWANCE`: 0.05 for widths from 16 (corrections of 1/16 over `log(8)` = 2.1 are 0.03). Wide networks need as much:
  there, 10 steps of Adam and random learned optimizers measured up to 0.1.

A missing multiplier changes an exponent by 1/2 (initial values, attention) or by 1 and more (all others).

**The bound of 0.5 under SP.** Adam changes every entry of a matrix by about its learning rate, with signs that align
with the layer's input, so n inputs add up to n rates: exponent 1 at infinite width. In narrow networks the part that
comes from the layers below, which does not grow, is of equal size, and the loss saturates after a few steps. For widths
from 16 and rates below 1e-3, hidden layers and readouts measured 0.7 to 1.05 in steps 1 to 3. SGD's gradients are
proportional to the layer's input, of squared length n, and to the backpropagated signal, of size 1 / sqrt(n) below the
readout: exponents 1 for the readout, 1/2 for hidden layers, -1/2 for the first layer.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import KEY, Orthogonalized, ScaledFor, adam, coordinate_check, images, learned, sgd, task
from strategies import log_floats, seeds

from lo_components import recipes, tasks
from lo_components.meta import CoordinateCheck
from lo_components.meta import coordinate_check as check_coordinates
from lo_components.optimizers import OptaxOptimizer, Scheduled
from lo_components.parametrization import PROPORTIONAL, SCALE_FREE, SP, Absorbed, MuP, infer_widths
from lo_components.schedules import OptaxSchedule

ALLOWANCE = 0.05
STEPS = 4
# Seeds cost milliseconds once the networks are compiled. Under SP few suffice, since exponents are far from the bound.
narrow = dict(widths=(16, 48, 128), num_steps=STEPS, num_seeds=24, depth=2)
narrow_sp = narrow | dict(widths=(16, 128), num_seeds=6)
# Two widths only, for networks that are slow to compile.
narrow_learned = dict(widths=(16, 128), num_steps=STEPS, num_seeds=12, depth=2)
WIDTHS = narrow_learned["widths"]
two_widths = dict(widths=WIDTHS, num_steps=STEPS, num_seeds=12)
narrow_learned_sp = narrow_learned | dict(num_seeds=4)


def exponents_and_bounds(
    check: CoordinateCheck, step: int, allowance: float = ALLOWANCE
) -> dict[str, tuple[float, float]]:
    """The exponent of each layer that changed, and the bound on its absolute value."""
    found = {}
    for i, (layer, exponent) in enumerate(check.exponents(step).items()):
        if exponent is not None:
            spread = np.max(np.var(np.log(check.changes[:, :, step, i]), axis=1, ddof=1))
            bias = spread / np.log(check.widths[-1] / check.widths[0])
            found[layer] = (exponent.value, allowance + 3 * exponent.error + bias)
    return found


def assert_no_layer_depends_on_the_width(check: CoordinateCheck, step: int, allowance: float = ALLOWANCE) -> None:
    found = exponents_and_bounds(check, step, allowance)
    assert list(found) == list(check.layers), f"layers without an exponent\n{check.table(step)}"
    too_far = {layer: f"|{value:.3f}| > {bound:.3f}" for layer, (value, bound) in found.items() if abs(value) > bound}
    assert not too_far, f"after step {step + 1}: {too_far}\n{check.table(step)}"


@given(seeds, log_floats(1e-3, 3e-2), st.integers(2, STEPS - 1))
def test_under_mup_no_layer_depends_on_the_width_with_adam(seed, rate, step):
    assert_no_layer_depends_on_the_width(coordinate_check("mlp", MuP(), adam(rate), seed=seed, **narrow), step)


@given(seeds, log_floats(0.1, 1.0), st.integers(2, STEPS - 1))
def test_under_mup_no_layer_depends_on_the_width_with_sgd(seed, rate, step):
    check = coordinate_check("mlp", MuP(), sgd(rate), seed=seed, **narrow)
    assert_no_layer_depends_on_the_width(check, step)


@given(seeds, seeds, log_floats(0.3, 1.5), st.integers(2, STEPS - 1))
def test_under_mup_no_layer_depends_on_the_width_with_a_random_learned_optimizer(theta, seed, theta_scale, step):
    check = coordinate_check("mlp", MuP(), learned(theta, theta_scale), seed=seed, **narrow_learned)
    assert_no_layer_depends_on_the_width(check, step)


@settings(max_examples=2)
@given(seeds)
def test_one_task_works_with_adam_sgd_muon_and_a_learned_optimizer(seed):
    """The inner step computes scales for each update rule; rules of optax transformations are measured."""
    networks = {width: task("mlp", width, MuP(), WIDTHS[0], depth=2) for width in WIDTHS}
    for optimizer in (optax.adam(1e-2, eps=1e-15), optax.sgd(0.3), Orthogonalized(jnp.float32(0.1)), learned(seed)):
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
            check = check_coordinates(optimizer, networks.__getitem__, **two_widths, key=jax.random.key(seed))
        assert_no_layer_depends_on_the_width(check, STEPS - 1)


@settings(max_examples=2)
@given(seeds, st.sampled_from([SCALE_FREE, PROPORTIONAL]))
def test_with_the_scales_of_another_rule_layers_do_depend_on_the_width(seed, rule):
    """SGD with the scales of Adam, and Adam with those of SGD."""
    declared = OptaxOptimizer(optax.sgd(0.3) if rule == SCALE_FREE else optax.adam(1e-2), update_rule=rule)
    with jax.numpy_dtype_promotion("standard"):
        check = check_coordinates(
            declared,
            lambda width: task("mlp", width, MuP(), WIDTHS[0], depth=2),
            **two_widths,
            key=jax.random.key(seed),
        )
    assert max(abs(e.value) for e in check.exponents(STEPS - 1).values() if e is not None) > 0.3


@given(seeds)
def test_behind_a_readout_of_zero_nothing_moves_at_the_first_step_and_all_at_the_second(seed):
    """A change of exactly zero has no exponent; the check reports the layer with `None`."""
    for parametrization, optimizer in ((MuP(), adam(1e-2)), (MuP(), sgd(0.3))):
        check = coordinate_check("mlp", parametrization, optimizer, seed=seed, **narrow)
        *hidden, readout = check.layers
        assert [layer for layer, e in check.exponents(0).items() if e is None] == hidden
        assert all("none" in line for line in check.table(0).splitlines()[1:-1])
        assert None not in check.exponents(1).values()
        value, bound = exponents_and_bounds(check, 0)[readout]
        assert abs(value) < bound


@given(seeds, log_floats(1e-4, 1e-3))
def test_under_sp_adam_moves_wide_layers_more_in_its_first_steps(seed, rate):
    check = coordinate_check("mlp", SP(), adam(rate), seed=seed, **narrow_sp)
    for step in range(3):
        assert check.largest(step) > 0.5, check.table(step)
        assert abs(check.exponents(step)["layers/0"].value) < 0.1


@given(seeds, log_floats(1e-3, 1e-2))
def test_under_sp_sgd_moves_the_readout_more_and_the_first_layer_less(seed, rate):
    check = coordinate_check("mlp", SP(), sgd(rate), seed=seed, **narrow_sp)
    exponents = check.exponents(0)
    assert check.largest(0) == exponents["layers/2"].value > 0.5, check.table(0)
    assert exponents["layers/0"].value < 0.1


@pytest.mark.slow
@settings(max_examples=5)
@given(seeds, seeds, log_floats(0.5, 1.5))
def test_under_sp_a_random_learned_optimizer_moves_wide_layers_more(theta, seed, theta_scale):
    check = coordinate_check("mlp", SP(), learned(theta, theta_scale), seed=seed, **narrow_learned_sp)
    assert check.largest(2) > 0.5, check.table(2)


OPTIMIZERS = {
    "Adam": (adam(1e-2), adam(3e-4), MuP()),
    "SGD": (sgd(0.3), sgd(1e-3), MuP()),
    "learned": (learned(0), learned(0), MuP()),
    "orthogonalized": (Orthogonalized(jnp.float32(0.1)), Orthogonalized(jnp.float32(0.01)), MuP()),
}
WIDE = {
    "mlp": dict(widths=(64, 256, 1024, 2048), num_steps=10, num_seeds=3, depth=3),
    "autoencoder": dict(widths=(64, 256, 1024), num_steps=5, num_seeds=3),
    "cnn": dict(widths=(64, 128, 256), num_steps=5, num_seeds=3),
    # At width 64 the first stage has 32 channels, 4 per normalization group: too few to be near the limit.
    "resnet": dict(widths=(128, 256), num_steps=5, num_seeds=3),
    "vit": dict(widths=(64, 128, 256), num_steps=5, num_seeds=3),
    "lm": dict(widths=(64, 128, 256), num_steps=5, num_seeds=3),
}


def allowance(name: str, optimizer: str) -> float:
    """The allowance for finite widths, given that three seeds leave the standard error itself uncertain.

    It is 0.1, and 0.2 for learned optimizers and networks with normalization, as measured at these widths. SGD with
    normalization needs more: below a readout that starts at zero, the effect of one example (or token) on another is
    proportional to the inner product of their features. At width n its random part is 1 / sqrt(n), 1/8 at width 64; its
    mean is no larger if features are normalized. So changes approach their limit as a mixture of n^0 and n^(-1/2):
    exponents of -0.2 to -0.3 between widths 64 and 256. A missing multiplier changes exponents by 1 or more.
    """
    if optimizer == "SGD" and name in ("resnet", "vit", "lm"):
        return 0.35
    return 0.2 if optimizer == "learned" or name in ("resnet", "vit", "lm") else 0.1


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", WIDE)
def test_wide_networks_under_mup(name, optimizer):
    under_mup, _, parametrization = OPTIMIZERS[optimizer]
    check = coordinate_check(name, parametrization, under_mup, seed=0, **WIDE[name])
    for step in {2, WIDE[name]["num_steps"] - 1}:
        print(f"\n{name}, {optimizer}, muP, step {step + 1}\n{check.table(step)}")
    for step in {2, WIDE[name]["num_steps"] - 1}:
        assert_no_layer_depends_on_the_width(check, step, allowance(name, optimizer))


@pytest.mark.slow
def test_with_batch_norm_a_resnet_is_near_its_limit_from_narrow_widths_with_sgd():
    """With group normalization it is not, because groups have only 4 channels at width 64."""
    under_mup, _, parametrization = OPTIMIZERS["SGD"]
    sizes = dict(widths=(64, 128, 256), num_steps=3, num_seeds=12)
    check = coordinate_check("resnet, batch norm", parametrization, under_mup, seed=0, **sizes)
    print(f"\nresnet, batch norm, SGD, muP, step 3\n{check.table(2)}")
    assert_no_layer_depends_on_the_width(check, 2, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"orthogonalized"}))
@pytest.mark.parametrize("name", sorted(set(WIDE) - {"autoencoder"}))  # its gradients are too small for SGD
def test_wide_networks_under_sp(name, optimizer):
    _, under_sp, _ = OPTIMIZERS[optimizer]
    check = coordinate_check(name, SP(), under_sp, seed=0, **(WIDE[name] | dict(num_steps=3)))
    print(f"\n{name}, {optimizer}, SP, step 1\n{check.table(0)}\nstep 3\n{check.table(2)}")
    assert check.largest(0) > 0.5


@pytest.mark.slow
def test_under_sp_orthogonalized_updates_move_the_readout_more_and_the_first_layer_less():
    """Updates of norm 1 in the spectrum change a layer by the root of fan-in over fan-out: n^(1/2) and n^(-1/2)."""
    _, under_sp, _ = OPTIMIZERS["orthogonalized"]
    check = coordinate_check("mlp", SP(), under_sp, seed=0, widths=(64, 256, 1024), num_steps=3, num_seeds=3, depth=3)
    exponents = check.exponents(0)
    assert exponents["layers/0"].value < -0.4 and exponents["layers/3"].value > 0.3, check.table(0)
    assert abs(exponents["layers/2"].value) < 0.15, check.table(0)


class Grouped(eqx.Module):
    """An attention with one head of keys and values for all queries; heads have 8 units, and their number grows."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key, 4)
        linear = lambda fan_out, key: eqx.nn.Linear(width, fan_out, use_bias=False, key=key)  # noqa: E731
        self.query, self.out = linear(width, keys[0]), linear(width, keys[1])
        self.key, self.value = linear(8, keys[2]), linear(8, keys[3])

    def __call__(self, x):
        query = jax.vmap(self.query)(x).reshape(len(x), -1, 8)
        key, value = jax.vmap(self.key)(x), jax.vmap(self.value)(x)
        weights = jax.nn.softmax(jnp.einsum("the,se->hts", query, key) / 8**0.5)
        return jax.vmap(self.out)(jnp.einsum("hts,se->the", weights, value).reshape(len(x), -1))


class Heads(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __init__(self, width, key):
        self.attention = eqx.nn.MultiheadAttention(width // 8, width, key=key)

    def __call__(self, x):
        return self.attention(x, x, x)


class Attending(eqx.Module):
    """Two blocks of attention and a hidden layer on the rows of an image, as a user writes them."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: list
    mlp: list
    readout: eqx.nn.Linear

    def __init__(self, width, attention):
        keys = jax.random.split(KEY, 6)
        self.embed, self.norm = eqx.nn.Linear(8, width, key=keys[0]), eqx.nn.LayerNorm(width)
        self.attention = [attention(width, key) for key in keys[1:3]]
        self.mlp = [eqx.nn.Linear(width, width, key=key) for key in keys[3:5]]
        self.readout = eqx.nn.Linear(width, 4, key=keys[5])

    def __call__(self, image):
        x = jax.vmap(self.embed)(image)
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + attention(jax.vmap(self.norm)(x))
            x = x + jax.vmap(mlp)(jax.nn.relu(jax.vmap(self.norm)(x)))
        return self.readout(jnp.mean(jax.vmap(self.norm)(x), axis=0))


def attending(attention, optimizer, widths, num_steps=6, role="bottleneck"):
    """The coordinate check of an unmodified model with inferred widths."""
    build = lambda width: Attending(width, attention)  # noqa: E731
    roles = {"*/key/weight": role, "*/value/weight": role} if attention is Grouped else {}

    def make(width):
        inferred = infer_widths(build, widths[0], 2 * widths[0], width, roles=roles)
        built = tasks.ImageClassification(
            images(), lambda key: build(width), widths=inferred, parametrization=Absorbed(MuP()), batch_size=32
        )
        return ScaledFor(built, optimizer.adam)

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
        return check_coordinates(
            optimizer, make, widths=widths, num_steps=num_steps, num_seeds=4, key=jax.random.key(0)
        )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [adam(3e-3), sgd(0.3)], ids=["Adam", "SGD"])
def test_equinox_attention_with_a_growing_number_of_heads_does_not_depend_on_the_width(optimizer):
    check = attending(Heads, optimizer, (32, 128, 512))
    print(f"\n{check.table()}")
    assert_no_layer_depends_on_the_width(check, 2, 0.1)
    assert_no_layer_depends_on_the_width(check, 5, 0.1)


@pytest.mark.slow
def test_keys_and_values_that_all_queries_share_are_bottlenecks():
    """Keys and values of fixed size are outputs in the network, and so of order 1 / width to begin with.

    Initial values of order 1 / sqrt(width), as for hidden weights, make the gradient of the layers before as large,
    which should be of order 1 / width: pre-activations of wide networks blow up. Measured exponents are at most 0.1
    for bottlenecks, and up to 0.5 for hidden weights. The update scales are the same. Bottlenecks approach their limit
    from above, as a mixture of n^0 and n^(-1/2), so only the upper side is bounded, and the lower one by -1/2.
    """
    widths = (64, 256, 1024)
    ours, hidden = (attending(Grouped, adam(1e-2), widths, role=role) for role in ("bottleneck", "hidden"))
    print(f"\n{ours.table(2)}\n{hidden.table(2)}")
    assert ours.largest(2) < 0.15 and ours.smallest(2) > -0.45, ours.table(2)
    assert hidden.largest(2) > 0.35, hidden.table(2)


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["ours", "the research code's"])
def test_attention_outputs_need_all_their_inputs_as_fan_in_if_heads_grow(scales):
    """The research code scales their updates by the size of one head, which is constant if their number grows."""
    head_size = 16

    def make(width):
        built = tasks.vit_classification(
            images(), width=width, patch_size=4, depth=2, heads=width // head_size, parametrization=MuP(), batch_size=32
        )
        if scales == "ours":
            return built
        outs = lambda t: [b.attention.out.weight for b in t.trained.widths.blocks]  # noqa: E731
        return eqx.tree_at(outs, built, [dataclasses.replace(w, fan_in_mult=float(head_size)) for w in outs(built)])

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes integers and floats.
        check = check_coordinates(
            optax.adam(1e-3, eps=1e-15), make, widths=(32, 128, 512), num_steps=4, num_seeds=3, key=jax.random.key(0)
        )
    found = {name: e.value for name, e in check.exponents(2).items() if name.endswith("attention/out")}
    print(f"\n{scales}\n{check.table(2)}")
    assert len(found) == 2
    for value in found.values():
        assert abs(value) < 0.2 if scales == "ours" else value > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["orthogonalized", "RMS of one", "relative to the parameter"])
def test_under_mup_no_layer_depends_on_the_width_with_the_rules_of_published_optimizers(name):
    """Celo2, Celo2-base and Celo, with random weights. Their updates hardly depend on the width under muP only."""
    key, rate = jax.random.key(3), OptaxSchedule(optax.constant_schedule, 0.03)
    optimizer = {
        "orthogonalized": Scheduled(recipes.celo2_direction(key=key), rate),
        "RMS of one": Scheduled(recipes.celo2_direction(orthogonalize=False, key=key), rate),
        "relative to the parameter": recipes.celo_update(step_mult=0.1, key=key),
    }[name]
    found = {
        scheme: check_coordinates(
            optimizer,
            lambda width, scheme=scheme: task("mlp", width, scheme, 16, depth=2),
            widths=(16, 64, 256),
            num_steps=2,
            num_seeds=8,
            key=jax.random.key(1),
        ).exponents(1)
        for scheme in (MuP(), SP())
    }
    assert all(abs(e.value) < 0.1 for e in found[MuP()].values())
    assert found[SP()]["layers/1"].value > 0.3
