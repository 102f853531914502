"""What `accelerator.py` tests and measures: each part returns rows for its JSON file."""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from models import gpt2, mlp, vit
from pes import PAIRS, WINDOW, Contender
from timed_update import TimedUpdate, adam, row, small_fc_lopt, time_in_turn

import lo_components as loc

ROOT = Path(__file__).parents[1]
# The learned optimizer reads gradient, parameter, three momenta and one second moment, and writes all but the gradient.
BYTES_PER_PARAM = {"optax.adam": 7 * 4, "small_fc_lopt": 11 * 4}
TESTS = ("tests/test_parity.py", "tests/contracts/test_head.py", "tests/contracts/test_optimizer.py")
Rows = list[dict[str, Any]]


def tests(smoke: bool) -> Rows:
    """The recorded steps of the published implementations, and the contracts of heads and optimizers."""
    # The numbers agree with those of a CPU only if products of matrices are not rounded to a shorter format.
    precision = {"JAX_DEFAULT_MATMUL_PRECISION": "float32", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        only = ["-k", "test_every_step_agrees_with_the_original and mlp_lopt"] if smoke else []
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([*command, *TESTS[: 1 if smoke else None], *only], cwd=ROOT, env={**os.environ, **precision})
        if not report.exists():
            raise RuntimeError("The tests did not run; install the library with `pip install -e '.[test]'`.")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [{"tests": len(cases), "failed": failed, "precision": "float32"}]


def update(model: str, hidden_size: int, hidden_layers: int, smoke: bool) -> Rows:
    """One update of a model by Adam and by a learned optimizer, in turn, and the time to read and write an array."""
    shapes = {
        "mlp": lambda: mlp(8, 16) if smoke else mlp(),
        "vit": lambda: vit(0, 16, image=32) if smoke else vit(),
        "decoder": lambda: gpt2(1, 16, 64, 32) if smoke else gpt2(),
    }[model]()
    learned = f"small_fc_lopt {hidden_size}x{hidden_layers}"
    contenders = {"optax.adam": TimedUpdate(adam(), shapes)}
    print("optax.adam is compiled", flush=True)
    contenders[learned] = TimedUpdate(small_fc_lopt(hidden_size, hidden_layers), shapes)
    print(f"{learned} is compiled", flush=True)
    time_in_turn(contenders.values(), rounds=2 if smoke else 10, calls=None)
    rate = copy_rate(2**16 if smoke else 2**28)
    rows = []
    for name, contender in contenders.items():
        r = {"model": model, "params": contender.num_params, "tensors": len(shapes), "optimizer": name}
        r |= row(contender, contenders["optax.adam"])
        # Gigabytes per second are bytes per nanosecond.
        r["gb_per_second"] = BYTES_PER_PARAM[name.split()[0]] / r["ns_per_param"]
        rows.append({**r, "copy_gb_per_second": rate})
        print(f"{model}, {name}: {r['ns_per_param']:.3f} ns per parameter, {r['ratio_to_adam']:.2f} times adam")
    return rows


def copy_rate(size: int) -> float:
    """Gigabytes per second at which the device reads and writes an array of `size` float32 numbers."""
    x = jnp.zeros(size)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        for _ in range(10):
            x = step(x)
        jax.block_until_ready(x)
        seconds.append((time.perf_counter() - begin) / 10)
    return 2 * x.nbytes / statistics.median(seconds[1:]) / 1e9


def pes(smoke: bool) -> Rows:
    """PES in the setting of muLO: three hidden layers of 128, batch 4096, 32x32 images (random ones), head 32x2."""
    number, width, depth, batch = (100, 8, 1, 16) if smoke else (50_000, 128, 3, 4096)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8), rng.integers(0, 1000, number)
    images = loc.data.image_dataset({"train": images}, num_classes=1000, name="random images")
    task = loc.tasks.mlp_classification(
        images, width=width, depth=depth, batch_size=batch, parametrization=loc.parametrization.MuP()
    )
    learner = loc.recipes.mulo(hidden_size=32, hidden_layers=2, key=jax.random.key(0))
    contender = Contender(task, small_learner() if smoke else learner)
    print(f"the first meta-step took {contender.first_step_seconds:.1f} s", flush=True)
    for _ in range(1 if smoke else 8):
        contender.run()
    seconds = statistics.median(contender.seconds)
    facts = {"width": width, "batch_size": batch, "pairs": PAIRS, "window": WINDOW}
    rate = {"steps_per_second": 2 * PAIRS * WINDOW / seconds, "seconds_per_meta_step": seconds}
    return [{**facts, **rate, "first_step_seconds": contender.first_step_seconds}]


def small_learner():
    """SGD with a learned learning rate, which is compiled quickly."""
    return loc.optimizers.OptaxOptimizer(optax.sgd, jnp.asarray(0.1))


def digits_pes(pairs: int, smoke: bool):
    """PES on digits, and small_fc_lopt 4x2."""
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    horizon = loc.unroll.LogUniformHorizon(100, 1000)
    unroll = loc.unroll.TruncatedUnroll(task, horizon, 5 if smoke else 50)
    learner = loc.recipes.small_fc_lopt(hidden_size=4, key=jax.random.key(0))
    return loc.estimators.PES(unroll, num_pairs=pairs), small_learner() if smoke else learner


def sharded(smoke: bool) -> Rows:
    """The same estimates by PES on one device and with its particles sharded over all of this machine."""
    devices = jax.local_devices()
    estimator, learner = digits_pes((2 if smoke else 8) * len(devices), smoke)
    mesh = loc.sharding.make_mesh(devices=devices)
    estimators = {"one device": estimator, "all devices": loc.sharding.ParticleSharded(estimator, mesh)}
    estimates, rows = {}, []
    for name, estimator in estimators.items():
        state = eqx.filter_jit(estimator.init)(learner, key=jax.random.key(1))
        estimate = eqx.filter_jit(lambda estimator, state, key: estimator.estimate(learner, state, key=key))
        seconds = []
        for i in range(3 if smoke else 12):
            begin = time.perf_counter()
            estimates[name], state = estimate(estimator, state, jax.random.key(i))
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - begin)
        rate = int(estimates[name].inner_steps) / statistics.median(seconds[1:])
        rows.append({"on": name, "devices": 1 if name == "one device" else len(devices), "steps_per_second": rate})
        print(f"{name}: {rate:,.0f} inner steps/s", flush=True)
    one, all_of_them = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(e.grad)]) for e in estimates.values())
    all_of_them = jax.device_put(all_of_them, one.sharding)
    rows[-1]["relative_difference"] = float(jnp.linalg.norm(all_of_them - one) / jnp.linalg.norm(one))
    return rows


def shard_map(smoke: bool) -> Rows:
    """An update of one model on each device under `jax.shard_map`, and the same without it."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("models",), devices=devices)
    optimizer = loc.recipes.small_fc_lopt(hidden_size=4, key=jax.random.key(0))
    shapes = {"w": (16, 8)} if smoke else mlp()
    keys = dict(zip(shapes, jax.random.split(jax.random.key(1), len(shapes)), strict=True))
    params = {name: jax.random.normal(keys[name], (len(devices), *shape)) for name, shape in shapes.items()}
    spec = PartitionSpec("models")
    spread_params = jax.device_put(params, NamedSharding(mesh, spec))

    @jax.vmap
    def step(params):
        updates, _ = optimizer.update(jax.tree.map(jnp.sin, params), optimizer.init(params), params)
        return updates

    spread = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec))(spread_params)
    alone = jax.jit(step)(params)
    spread = jax.device_get(spread)
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))), spread, alone)
    return [{"devices": len(devices), "largest_relative_difference": max(differences.values())}]


def meta_training(smoke: bool) -> Rows:
    """Meta-train small_fc_lopt 4x2 on digits for 300 meta-steps."""
    estimator, learner = digits_pes(2 if smoke else 8, smoke)
    num_steps = 2 if smoke else 300
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        loc.meta.meta_train(
            learner,
            estimator,
            num_steps=num_steps,
            checkpoints=loc.meta.Checkpoints(folder, {}, every=num_steps),
            log_every=1 if smoke else 30,
            progress=None,
            key=jax.random.key(2),
        )
        seconds, log = time.perf_counter() - begin, loc.meta.read_log(folder)
    rows = [{"step": r["step"], "loss": r["loss"], "finite": r["finite"], "seconds": seconds} for r in log]
    print(f"{num_steps} meta-steps in {seconds:.1f} s: loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}")
    return rows


def parts(smoke: bool) -> dict[str, Callable[[bool], Rows]]:
    """The parts in the order in which they run."""

    def updates(models: tuple[str, ...], *hidden: int) -> dict[str, Callable[[bool], Rows]]:
        return {f"update-{m}-{hidden[0]}x{hidden[1]}": functools.partial(update, m, *hidden) for m in models}

    models = ("mlp", "vit", "decoder")
    return {
        "tests": tests,
        **updates(models, 4, 2),
        **updates(models[:0] if smoke else models, 32, 2),
        "pes": pes,
        "sharded": sharded,
        "shard-map": shard_map,
        "meta-training": meta_training,
        **updates(models[:0] if smoke else models, 32, 1),
    }
