import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from helpers import MANIFEST, load_golden

from lo_components import interop
from lo_components.aggregators import AbstractAggregator
from lo_components.optimizers import StepContext

golden = functools.cache(load_golden)


# Compilation is nearly all of this file's time, so it is asked to optimize little.
LITTLE: dict[str, Any] = {"compiler_options": {"xla_backend_optimization_level": 0}}


@eqx.filter_jit(**LITTLE)
def _step(learner, grads, state, params, context):
    update = learner.aggregate if isinstance(learner, AbstractAggregator) else learner.update
    updates, state = update(grads, state, params, context=context)
    return optax.apply_updates(params, updates), state


def _misses(params, reference, start):
    """The leaves that miss `||p - ref|| <= 1e-4 ||ref - p_0|| + 2 ||ulp32(ref)||`."""
    missed = []
    for name, ref in reference.items():
        error = np.linalg.norm(np.asarray(params[name]) - ref)
        moved = np.linalg.norm(ref - start[name])
        if not error <= 1e-4 * moved + 2 * np.linalg.norm(np.spacing(np.abs(ref))):
            missed.append((name, error, moved))
    return missed


def _check_trajectory(run):
    learner = interop.from_reference(run["config"]["kind"], run["theta"], run["config"])
    params = run["params"][0]
    state = learner.init(params)
    for t, grads in enumerate(run["grads"]):
        context = StepContext(loss=run["losses"][t], num_steps=np.int32(run["config"]["num_steps"]))
        params, state = _step(learner, grads, state, params, context)
        reference = run["params"][t + 1]
        assert {k: (p.shape, p.dtype) for k, p in params.items()} == {
            k: (r.shape, r.dtype) for k, r in reference.items()
        }
        assert not _misses(params, reference, run["params"][0]), f"step {t}"


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", MANIFEST)
def test_every_step_agrees_with_the_original(name):
    _check_trajectory(golden(name))


@pytest.mark.parametrize(("name", "most"), [("small_fc_lopt_h4_l2", 0), ("small_fc_lopt_h32_l1", 600)])
def test_networks_agree_whether_they_are_written_out_or_matrix_products(name, most, monkeypatch):
    monkeypatch.setattr("lo_components.heads._mlp._MAX_UNROLLED", most)
    run, leaves = golden(name), ("scalar", "matrix")
    few = {k: [{leaf: tree[leaf] for leaf in leaves} for tree in run[k]] for k in ("params", "grads")}
    _check_trajectory({**run, **few})


def test_numpy_and_jax_inputs_give_the_same_update():
    run = golden("mlp_lopt")
    optimizer = interop.from_reference(run["config"]["kind"], run["theta"], run["config"])
    leaves = ["scalar", "matrix"]
    params = {k: run["params"][0][k] for k in leaves}
    grads = {k: run["grads"][0][k] for k in leaves}
    from_numpy, _ = optimizer.update(grads, optimizer.init(params), params)
    as_jax = functools.partial(jax.tree.map, jax.numpy.asarray)
    from_jax, _ = optimizer.update(as_jax(grads), optimizer.init(as_jax(params)), as_jax(params))
    for key in leaves:
        assert isinstance(from_numpy[key], jax.Array)
        np.testing.assert_array_equal(from_numpy[key], from_jax[key])


def test_jax_theta_gives_the_same_optimizer_as_numpy_theta():
    run = golden("mlp_lopt")
    from_numpy = interop.from_reference("mlp_lopt", run["theta"], run["config"])
    from_jax = interop.from_reference("mlp_lopt", jax.tree.map(jax.numpy.asarray, run["theta"]), run["config"])
    assert eqx.tree_equal(from_numpy, from_jax)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(eqx.filter(from_numpy, eqx.is_array)))


def test_only_the_network_and_learnable_decays_are_meta_parameters():
    for name in ["small_fc_lopt_h32_l2", "mulo_h32_l2", "mlp_lopt", "lagg_a", "lopt_a", "lagg", "lopt"]:
        run = golden(name)
        optimizer = interop.from_reference(run["config"]["kind"], run["theta"], run["config"])
        size = sum(x.size for x in jax.tree.leaves(eqx.filter(optimizer, eqx.is_array)))
        assert size == sum(x.size for x in run["theta"].values()), name


def _with(mapping, **changes):
    return {**mapping, **changes}


def test_unknown_kind_is_named():
    run = golden("mlp_lopt")
    with pytest.raises(
        ValueError, match="`kind` must be one of celo, celo2, .*, small_fc_lopt, star, velo, got 'adam'"
    ):
        interop.from_reference("adam", run["theta"], run["config"])


@pytest.mark.parametrize("name", ["small_fc_lopt_h4_l2", "mulo_h32_l2", "mlp_lopt", "lagg_a", "lopt"])
def test_unknown_config_key_is_named(name):
    run = golden(name)
    with pytest.raises(ValueError, match="`hidden_sizes`"):
        interop.from_reference(run["config"]["kind"], run["theta"], _with(run["config"], hidden_sizes=3))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("small_fc_lopt_h4_l2", "momentum_decays"),
        ("mulo_h32_l2", "nn/~/b1"),
        ("mlp_lopt", "mlp/~/linear_2/w"),
        ("lagg_a", "nn/~/w0"),
        ("lopt", "mlp/~/linear_0/w"),
    ],
)
def test_array_that_is_missing_unexpected_misshapen_or_of_integers_is_named(name, array):
    run = golden(name)
    theta, config = run["theta"], run["config"]

    def load(theta):
        interop.from_reference(config["kind"], theta, config)

    with pytest.raises(ValueError, match=f"lacks the array `{array}`"):
        load({k: v for k, v in theta.items() if k != array})
    with pytest.raises(ValueError, match=f"unexpected array `{array}_2`"):
        load(_with(theta, **{f"{array}_2": theta[array]}))
    with pytest.raises(ValueError, match=rf"`theta\['{array}'\]` must have shape"):
        load(_with(theta, **{array: theta[array][..., :-1]}))
    with pytest.raises(ValueError, match=rf"`theta\['{array}'\]` must be floating point, got int32"):
        load(_with(theta, **{array: theta[array].astype(np.int32)}))


@pytest.mark.parametrize(("name", "key"), [("lagg_a", "with_avg"), ("lopt", "with_all_grads")])
def test_inputs_of_another_kind_of_aggregator_are_refused(name, key):
    run = golden(name)
    with pytest.raises(ValueError, match=f"`{key}` must be False for this `kind`, got True"):
        interop.from_reference(run["config"]["kind"], run["theta"], _with(run["config"], **{key: True}))


def test_several_rms_decays_are_refused():
    run = golden("small_fc_lopt_h4_l2")
    with pytest.raises(ValueError, match="`initial_rms_decays` must have one entry"):
        interop.from_reference("small_fc_lopt", run["theta"], _with(run["config"], initial_rms_decays=[0.9, 0.99]))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("small_fc_lopt_h4_l2", dict(step_mult=1e-3, decays=(0.9, 0.99, 0.999))),
        ("mulo_h32_l2", dict(step_mult=1e-2, decays=(0.9, 0.99, 0.999))),
        ("mlp_lopt_h32", dict(step_mult=1e-3, decays=(0.1, 0.5, 0.9, 0.99, 0.999, 0.9999))),
    ],
)
def test_an_empty_config_means_the_originals_defaults(name, ours, getkey):
    if name == "mlp_lopt_h32":
        kind, sizes = "mlp_lopt", [19, 32, 32, 2]
        layers = list(zip(sizes[:-1], sizes[1:], strict=True))
        theta = {f"mlp/~/linear_{i}/w": np.zeros(s, np.float32) for i, s in enumerate(layers)}
        theta |= {f"mlp/~/linear_{i}/b": np.zeros(s[1], np.float32) for i, s in enumerate(layers)}
    else:
        kind, theta = MANIFEST[name]["kind"], golden(name)["theta"]
    optimizer = interop.from_reference(kind, theta, {})
    assert optimizer.pipeline.step_rule.step_mult == ours["step_mult"]
    assert optimizer.pipeline.step_rule.exp_mult == 1e-3
    assert optimizer.pipeline.accumulators[0].decays.initial == ours["decays"]
    if kind != "mlp_lopt":
        assert optimizer.pipeline.accumulators[1].decays.initial == (0.999,)
        assert optimizer.pipeline.accumulators[2].decays.initial == (0.9, 0.99, 0.999)


def test_mulo_without_multipliers_is_not_scaled():
    run = golden("mulo_h32_l2")
    config = {k: v for k, v in run["config"].items() if k != "update_multipliers"}
    bare = interop.from_reference("mulo", run["theta"], config)
    scaled = interop.from_reference("mulo", run["theta"], run["config"])
    assert eqx.tree_equal(bare, scaled.optimizer)
    assert scaled.scales == run["config"]["update_multipliers"]
    assert all(type(s) is float for s in scaled.scales.values())


def test_celo_with_several_networks_is_refused():
    run = golden("celo_small")
    several = {n: np.concatenate([x, 9.0 * x]) if n.startswith("ff_mod_stack") else x for n, x in run["theta"].items()}
    with pytest.raises(ValueError, match="only Celo with `param_inits` 1"):
        interop.from_reference("celo", several, run["config"])
