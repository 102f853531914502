"""What is compiled, and how often: programs are keyed by structure and sizes, not by the objects that hold them."""

import collections
import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lo_components as loc
from lo_components import estimators, recipes, tasks
from lo_components.data import TokenDataset, image_dataset
from lo_components.meta import _sweep, coordinate_check, evaluate, meta_optimizer, meta_train, sweep
from lo_components.parametrization import SP, MuP
from lo_components.unroll import ConstantHorizon, LocalRound, LogUniformHorizon, TruncatedUnroll

pytestmark = pytest.mark.usefixtures("standard_promotion")

KEY = jax.random.key(0)
RATES = tuple(np.logspace(-3, -1, 10))


@contextlib.contextmanager
def compiled():
    """The names of the functions that are compiled in the `with` block."""
    names: list[str] = []

    def listen(event: str, seconds: float, **metadata):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(metadata["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def images(seed: int, size: int = 4, channels: tuple[int, ...] = (), splits: tuple[str, ...] = ("train",)):
    rng = np.random.default_rng(seed)
    shape = 20, size, size, *channels
    data = {split: (rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, 3, 20)) for split in splits}
    return image_dataset(data, num_classes=3, name="random")


def tokens(seed: int):
    rows = np.random.default_rng(seed).integers(1, 5, (6, 4))
    return TokenDataset({"train": jnp.asarray(rows, jnp.int32)}, 5)


def mlp(seed: int, width: int = 4):
    return tasks.mlp_classification(images(seed), width=width, depth=1, parametrization=MuP(), batch_size=4)


def learned(seed: int):
    return recipes.small_fc_lopt(hidden_size=2, key=jax.random.key(seed))


def pes(seed: int, horizon: int = 4):
    unroll = TruncatedUnroll(mlp(seed), LogUniformHorizon(2, horizon), 2)
    return estimators.PES(unroll, num_pairs=2, std=0.01 * (seed + 1))


def test_the_listener_hears_of_compilations():
    with compiled() as names:
        jax.jit(lambda x: x + 1)(jnp.arange(3))
    assert sum("lambda" in name for name in names) == 1


def test_a_sweep_of_ten_rates_ten_seeds_and_three_data_sets_compiles_once():
    def swept(seed):
        task, key = mlp(seed), jax.random.key(seed)
        run = lambda rate: evaluate(  # noqa: E731
            loc.OptaxOptimizer(optax.adam, rate), task, num_steps=3, num_seeds=10, key=key
        )
        return sweep(run, jnp.asarray(RATES)).evaluations.losses

    with compiled() as names:
        losses = [swept(seed) for seed in range(3)]
    assert sum("_sweep" in name for name in names) == 1 and not any("_evaluate" in name for name in names)
    # Each sweep used its own data and its own key, and each rate its own curve.
    assert len(np.unique(np.stack(losses)[..., -1])) == 300
    alone = evaluate(loc.OptaxOptimizer(optax.adam, RATES[4]), mlp(2), num_steps=3, num_seeds=10, key=jax.random.key(2))
    np.testing.assert_allclose(losses[2][4], alone.losses, rtol=1e-5)


def test_a_sweep_of_another_program_is_another_program():
    values = jnp.asarray([1.0, 2.0])
    task = tasks.Quadratic(jnp.ones(3))

    def swept(optimizer, **kwargs):
        run = lambda rate: evaluate(optimizer(rate), task, num_steps=3, num_seeds=1, key=KEY, **kwargs)  # noqa: E731
        return sweep(run, values)

    sgd = swept(lambda rate: loc.OptaxOptimizer(optax.sgd, 0.1 * rate)).evaluations.losses
    half = swept(lambda rate: loc.OptaxOptimizer(optax.sgd, 0.05 * rate)).evaluations.losses
    np.testing.assert_allclose(sgd[0], half[1], rtol=1e-6)
    assert np.all(half[..., 1:] > sgd[..., 1:])


def test_a_sweep_reads_the_arrays_that_it_was_given():
    """Programs that differ only in which of several arrays of one shape they read are not one program."""
    task = tasks.mlp_classification(images(0, splits=("train", "inner_valid", "test")), width=4, depth=1, batch_size=4)

    def run(split):
        return lambda rate: evaluate(
            loc.OptaxOptimizer(optax.adam, rate), task, num_steps=2, num_seeds=2, splits=(split,), key=KEY
        )

    rate = jnp.asarray(0.1)
    found = {split: sweep(run(split), rate[None]) for split in ("inner_valid", "test")}
    for split, swept in found.items():
        alone = run(split)(rate).metrics[split]["loss"]
        np.testing.assert_allclose(swept.evaluations.metrics[split]["loss"][0], alone, rtol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_sweeps_that_call_python_call_their_own_function(inside):
    def swept(factor):
        def called(losses):
            return jax.pure_callback(lambda x: factor * np.asarray(x), losses, losses, vmap_method="sequential")

        def run(rate):
            found = evaluate(loc.OptaxOptimizer(optax.sgd, rate), tasks.Quadratic(jnp.ones(3)), num_steps=2, key=KEY)
            if inside:
                losses = jax.lax.cond(rate > 0, jax.jit(called), jnp.zeros_like, found.losses)
            else:
                losses = called(found.losses)
            return eqx.tree_at(lambda found: found.losses, found, losses)

        return np.asarray(sweep(run, jnp.asarray([0.1, 0.2])).evaluations.losses)

    one, hundred = swept(np.float32(1)), swept(np.float32(100))
    np.testing.assert_allclose(hundred, 100 * one, rtol=1e-6)


def test_sweeps_do_not_fill_the_memory_with_programs(monkeypatch):
    task, traced, find = tasks.Quadratic(jnp.ones(3)), [], _sweep._program

    def found(jaxpr, *rest):
        traced.append(weakref.ref(jaxpr))
        return find(jaxpr, *rest)

    def swept(factor):
        optimizer = lambda rate: loc.OptaxOptimizer(optax.sgd, factor * rate)  # noqa: E731
        sweep(lambda rate: evaluate(optimizer(rate), task, num_steps=1, num_seeds=1, key=KEY), jnp.asarray([0.1]))

    monkeypatch.setattr(_sweep, "_program", found)
    monkeypatch.setattr(_sweep, "_programs", collections.OrderedDict())
    monkeypatch.setattr(_sweep, "_MOST_PROGRAMS", 2)
    for factor in (1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 4.0):  # the program of 1 is always among the last two
        swept(factor)
    gc.collect()
    assert [x() is not None for x in traced] == [True, False, False, False, False, False, True]


def test_evaluations_of_equal_structure_compile_once():
    def run(seed):
        evaluate(loc.OptaxOptimizer(optax.adam, 1e-3), mlp(seed), num_steps=3, num_seeds=10, key=jax.random.key(seed))
        evaluate(learned(seed), mlp(seed), num_steps=3, num_seeds=2, key=jax.random.key(seed))
        # A float is a constant; an array is not.
        evaluate(loc.OptaxOptimizer(optax.sgd, jnp.asarray(RATES[seed])), mlp(seed), num_steps=2, key=KEY)

    run(0)
    with compiled() as names:
        run(1)
        run(2)
    assert not names


def test_meta_training_compiles_its_step_once():
    def run(seed):
        meta_train(learned(seed), pes(seed, 4 + seed), num_steps=2, progress=None, key=jax.random.key(seed))

    with compiled() as names:
        run(0)
    assert sum("_step" in name for name in names) == 1
    with compiled() as names:
        run(1)
    assert not names


def test_coordinate_checks_of_recreated_tasks_compile_nothing():
    def run(seed):
        coordinate_check(learned(seed), lambda width: mlp(seed, width), widths=(4, 8), num_steps=2, key=KEY)

    run(0)
    with compiled() as names:
        run(1)
    assert not names


@pytest.mark.slow
def test_a_second_process_finds_all_programs_in_the_persistent_cache(tmp_path):
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    counts = [
        json.loads(
            subprocess.run(
                [sys.executable, Path(__file__).parent / "cached_run.py"],
                env={**os.environ, **environment},
                check=True,
                capture_output=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert counts[0]["/jax/compilation_cache/cache_misses"] > 3
    assert counts[1] == {"/jax/compilation_cache/cache_hits": sum(counts[0].values())}


def _unroll(seed):
    return TruncatedUnroll(mlp(seed), ConstantHorizon(4), 2)


RECREATED = {
    "MLP": lambda s: tasks.mlp_classification(images(s), width=4),
    "MLP with larger images": lambda s: tasks.mlp_classification(images(s), width=4, base_width=2, base_in_size=8),
    "CNN": lambda s: tasks.cnn_classification(images(s, channels=(3,)), width=4, depth=2),
    "ResNet": lambda s: tasks.resnet_classification(images(s, 8, (3,)), blocks=[1, 1], width=16),
    "ViT": lambda s: tasks.vit_classification(images(s, 8, (3,)), patch_size=4, width=4, depth=1, heads=1),
    "autoencoder": lambda s: tasks.image_autoencoding(images(s), width=4),
    "language model": lambda s: tasks.language_modeling(tokens(s), width=4, depth=1, heads=1, dropout=0.1),
    "streamed": lambda s: tasks.Streamed(mlp(s), 2),
    "augmented": lambda s: tasks.Reparametrized(tasks.ReducedBatch(mlp(s))),
    "own model": lambda s: tasks.ImageClassification(images(s), eqx.Partial(_own, 4), widths=None),
    "small_fc_lopt": learned,
    "mulo": lambda s: recipes.mulo(key=jax.random.key(s)),
    "Adam": lambda s: loc.OptaxOptimizer(optax.adam, 1e-3, b1=0.8),
    "meta_optimizer": lambda s: meta_optimizer(100, peak=1e-2),
    "PES": pes,
    "GPES": lambda s: estimators.GPES(_unroll(s), 2, windows_per_draw=2),
    "ESSingle": lambda s: estimators.ESSingle(_unroll(s), 2),
    "FullES": lambda s: estimators.FullES(_unroll(s), 2, shaping=estimators.CenteredRanks()),
    "backprop": lambda s: estimators.TruncatedBackprop(_unroll(s), 2),
    "lagg_a": lambda s: recipes.lagg_a(num_workers=2, key=jax.random.key(s)),
    "local rounds": lambda s: LocalRound(2, 3, loc.OptaxOptimizer(optax.sgd, 0.1)),
}


def _own(width, key):
    return loc.nn.MLP(16, 3, width=width, depth=1, parametrization=SP(), key=key)


@pytest.mark.parametrize("name", RECREATED)
def test_what_is_recreated_with_equal_constants_is_equal_but_for_its_arrays(name):
    """So `equinox.filter_jit` compiles nothing for it: all data are arrays, and all constants compare equal."""
    constants = [jax.tree.flatten(eqx.partition(RECREATED[name](seed), eqx.is_array)[1]) for seed in (0, 1)]
    assert constants[0] == constants[1] and hash(constants[0][1]) == hash(constants[1][1])
