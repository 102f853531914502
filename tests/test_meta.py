import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, Adam
from meta_helpers import (
    START,
    Counting,
    Drift,
    Given,
    HashableList,
    Noisy,
    assert_identical,
    quadratic_unroll,
    toy_task,
)

from lo_components import recipes, theta
from lo_components.aggregators import Mean
from lo_components.estimators import PES
from lo_components.estimators._base import COLUMNS
from lo_components.meta import (
    Checkpoints,
    Evaluation,
    MetaState,
    _arguments,
    _checkpoints,
    _loop,
    _run_folder,
    evaluate,
    init_meta_state,
    meta_optimizer,
    meta_step,
    meta_train,
    read_log,
    step_sizes,
)
from lo_components.tasks import Quadratic
from lo_components.unroll import ConstantHorizon, LocalRound, TruncatedUnroll
from lo_components.weights import CheckpointError, load_arrays, save_arrays

pytestmark = pytest.mark.usefixtures("standard_promotion")


TIMES = {"seconds", "steps_per_second"}
DIAGNOSTICS = {"restarts", "clipped_losses", "reduced_differences", "variance", "signal"}


# One meta-step.


def given(grad, finite=1.0):
    return Given(Drift(jnp.asarray(grad)), jnp.asarray(finite))


def one_step(estimator, optimizer=None, *, theta=(0.0, 0.0)):
    optimizer = meta_optimizer(100, warmup=0) if optimizer is None else optimizer
    before = init_meta_state(Drift(jnp.asarray(theta)), estimator, optimizer, key=jax.random.key(0))
    after, metrics = eqx.filter_jit(meta_step)(before, estimator, optimizer)
    return before, after, metrics


@pytest.mark.parametrize(
    "estimator",
    [given([1.0, 2.0], finite=0.0), given([1.0, math.nan]), given([math.inf, 1.0]), given([math.nan, 1.0], finite=0.5)],
)
def test_a_meta_step_without_a_usable_gradient_is_skipped_and_reported(estimator):
    before, after, metrics = one_step(estimator, theta=(1.0, -1.0))
    assert metrics.skipped == 1.0
    assert_identical(after.learner, before.learner)
    assert_identical(after.optimizer_state, before.optimizer_state)
    assert after.step == 1 and after.estimator_state == 1


def test_a_meta_step_that_would_make_theta_non_finite_is_skipped():
    before, after, metrics = one_step(given([-1.0, 0.0]), optax.sgd(3e38), theta=(3e38, 0.0))
    assert metrics.skipped == 1.0
    assert_identical(after.learner, before.learner)


def test_a_meta_step_with_some_finite_particles_is_taken():
    before, after, metrics = one_step(given([3.0, -4.0], finite=0.25), optax.sgd(0.5), theta=(1.0, 1.0))
    assert (metrics.skipped, metrics.finite, metrics.loss, metrics.meta_loss) == (0.0, 0.25, 2.5, 1.5)
    assert metrics.grad_norm == 5.0
    np.testing.assert_allclose(after.learner.velocity, [-0.5, 3.0])


def test_the_gradient_is_clipped_before_adam_sees_it():
    huge, large = (one_step(given([scale, -scale]))[1] for scale in (1e6, 10.0))
    assert np.all(np.abs(huge.learner.velocity) > 1e-3)
    np.testing.assert_allclose(huge.learner.velocity, large.learner.velocity, rtol=1e-6)
    (adam,) = [s for s in jax.tree.leaves(huge.optimizer_state, is_leaf=is_adam) if is_adam(s)]
    np.testing.assert_allclose(adam.mu, 0.1 * np.array([1, -1]) / math.sqrt(2), rtol=1e-5)


def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_a_gradient_within_the_norm_is_not_clipped():
    (adam,) = [
        s for s in jax.tree.leaves(one_step(given([0.3, 0.4]))[1].optimizer_state, is_leaf=is_adam) if is_adam(s)
    ]
    np.testing.assert_allclose(adam.mu, [0.03, 0.04], rtol=1e-5)


def learning_rates(num_steps, **options):
    """What the meta-optimizer multiplies Adam's direction by: with a constant gradient that direction is 1."""
    optimizer = meta_optimizer(num_steps, weight_decay=0.0, **options)

    def step(state, _):
        updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
        return state, -jnp.asarray(updates)[0]

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, optimizer.init(jnp.zeros(1)), length=num_steps + 1)[1])())


@pytest.mark.parametrize(("num_steps", "warmup"), [(1000, 100), (40, 20)])
def test_the_learning_rate_warms_up_linearly_and_decays_as_a_cosine(num_steps, warmup):
    t = np.arange(num_steps + 1)
    cosine = 0.5 * (1 + np.cos(np.pi * (t - warmup) / (num_steps - warmup)))
    expected = np.where(t < warmup, 3e-10 + (3e-3 - 3e-10) * t / warmup, 1e-3 + (3e-3 - 1e-3) * cosine)
    # In float32 the schedule's first value, a difference of two large ones, is 2.3e-10.
    np.testing.assert_allclose(learning_rates(num_steps), expected, rtol=2e-4, atol=1e-10)


def test_weight_decay_is_decoupled():
    optimizer = meta_optimizer(100, peak=0.01, warmup=0, weight_decay=0.5)
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(jnp.ones(1)), jnp.full(1, 2.0))
    np.testing.assert_allclose(jnp.asarray(updates), [-0.01 * 0.5 * 2.0], rtol=1e-5)


def test_meta_steps_use_new_keys_and_depend_on_the_runs_key():
    estimator, optimizer = PES(TruncatedUnroll(Noisy(), ConstantHorizon(10), 5), num_pairs=2), optax.sgd(0.0)
    step = eqx.filter_jit(lambda state: meta_step(state, estimator, optimizer))
    losses = []
    for seed in (0, 0, 1):
        state = init_meta_state(SGD(jnp.asarray(0.0)), estimator, optimizer, key=jax.random.key(seed))
        for _ in range(2):
            state, metrics = step(state)
            losses.append(float(metrics.loss))
    assert losses[:2] == losses[2:4]
    assert len(set(losses)) == 4


# Meta-training.

QUADRATIC = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
OPTIMIZER = optax.adam(0.05)
CONFIG = {"task": "quadratic", "rate": 0.05, "sizes": (1, 2)}


def train(folder=None, *, num_steps=30, every=7, config=CONFIG, learner=None, optimizer=OPTIMIZER, **options):
    checkpoints = None if folder is None else Checkpoints(folder, config, every=every)
    learner = SGD(jnp.asarray(0.01)) if learner is None else learner
    options = {"log_every": 5, "progress": None, "key": jax.random.key(0), **options}
    return meta_train(learner, QUADRATIC, num_steps=num_steps, optimizer=optimizer, checkpoints=checkpoints, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the learner of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    with jax.numpy_dtype_promotion("standard"):
        return folder, train(folder)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder."""
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def checkpoints_in(folder):
    return sorted(Path(folder).glob("checkpoint*.safetensors"))


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_meta_training_lowers_the_meta_loss(finished):
    trained = finished[1]
    rate = trained.hyperparameters["learning_rate"]
    assert float(rate) > 0.3  # from 0.01; the best on this task is 1
    assert not isinstance(rate, jax.core.Tracer) and np.shape(rate) == ()
    rows = read_log(finished[0])
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]


def test_the_log_has_the_mean_of_every_few_steps(finished, tmp_path):
    rows = read_log(finished[0])
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    numbers = {"step", "loss", "meta_loss", "finite", "usable", "grad_norm", "skipped", "inner_steps"} | TIMES
    assert set(rows[0]) == numbers | DIAGNOSTICS
    assert numbers == COLUMNS - {"diagnostics", "learning_rate"}
    assert all(row["finite"] == 1.0 and row["skipped"] == 0.0 and row["steps_per_second"] > 0 for row in rows)
    train(tmp_path / "each", num_steps=10, log_every=1)
    each = read_log(tmp_path / "each")
    assert [row["step"] for row in each] == list(range(1, 11))
    for name in ("loss", "grad_norm", "variance"):
        np.testing.assert_allclose(rows[0][name], np.mean([row[name] for row in each[:5]]), rtol=1e-6)


def test_the_last_step_is_logged_and_kept_whatever_the_intervals(tmp_path):
    learner = train(tmp_path / "run", num_steps=7, every=100, log_every=4)
    assert [row["step"] for row in read_log(tmp_path / "run")] == [4, 7]
    assert_identical(train(tmp_path / "run", num_steps=7, every=100, log_every=4), learner)


def test_the_folder_holds_config_log_and_checkpoint(finished):
    folder, learner = finished
    newest = {"checkpoint-00000028.safetensors", "checkpoint-00000030.safetensors"}
    assert set(contents(folder)) == {"config.json", "constants.json", "log.jsonl", "best.safetensors"} | newest
    assert json.loads((folder / "config.json").read_text()) == {"task": "quadratic", "rate": 0.05, "sizes": [1, 2]}
    state = init_meta_state(SGD(jnp.asarray(0.0)), QUADRATIC, OPTIMIZER, key=jax.random.key(9))
    loaded, metadata = load_arrays(folder / "checkpoint-00000030.safetensors", state)
    assert isinstance(loaded, MetaState) and loaded.step == metadata["step"] == 30
    assert_identical(loaded.learner, learner)


def test_a_folder_changes_nothing_about_the_result(finished):
    assert_identical(train(), finished[1])


def test_the_callers_learner_and_task_stay_usable():
    learner = SGD(jnp.asarray(0.01))
    estimator = PES(TruncatedUnroll(Quadratic(jnp.asarray(START)), ConstantHorizon(10), 5), num_pairs=2)
    key = jax.random.key(0)
    first = meta_train(learner, estimator, num_steps=3, optimizer=OPTIMIZER, progress=None, key=key)
    np.testing.assert_array_equal(learner.hyperparameters["learning_rate"], np.float32(0.01))
    np.testing.assert_array_equal(estimator.unroll.task.start, START)
    assert_identical(meta_train(learner, estimator, num_steps=3, optimizer=OPTIMIZER, progress=None, key=key), first)


def test_meta_training_traces_once():
    traces = []
    for num_steps in (2, 50):
        learner = Counting(jnp.asarray(0.01), HashableList())
        train(learner=learner, num_steps=num_steps)
        traces.append(len(learner.traces))
    assert traces[0] == traces[1] > 0


def test_the_bar_shows_the_loss_and_its_label(capsys):
    train(num_steps=5, progress="toy run")
    error = capsys.readouterr().err
    assert (
        "toy run" in error
        and "5/5" in error
        and "meta-loss " in error
        and ", loss " in error
        and "100% finite" in error
    )
    train(num_steps=5, progress=None)
    assert capsys.readouterr().err == ""


def test_the_best_checkpoint_is_the_one_with_the_lowest_meta_loss(tmp_path):
    estimator = Given(SGD(jnp.asarray(0.0)), jnp.asarray(1.0))
    checkpoints = Checkpoints(tmp_path / "run", {}, every=2)
    learner = SGD(jnp.asarray(0.01))
    arguments = dict(checkpoints=checkpoints, log_every=1, progress=None, key=KEY)
    meta_train(learner, estimator, num_steps=2, optimizer=OPTIMIZER, **arguments)
    state = init_meta_state(learner, estimator, OPTIMIZER, key=KEY)
    assert load_arrays(tmp_path / "run" / "best.safetensors", state)[1]["meta_loss"] == 1.5
    assert [(row["loss"], row["meta_loss"]) for row in read_log(tmp_path / "run")] == [(2.5, 1.5)] * 2


def test_the_log_has_inner_steps_seconds_and_the_learning_rate(tmp_path):
    began = time.perf_counter()
    train(tmp_path / "run", num_steps=12, optimizer=meta_optimizer(12), log_every=4)
    elapsed = time.perf_counter() - began
    rows = read_log(tmp_path / "run")
    # Two pairs of two members, windows of five steps.
    assert [row["inner_steps"] for row in rows] == [step * 2 * 2 * 5 for step in (4, 8, 12)]
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < elapsed
    np.testing.assert_allclose([row["steps_per_second"] for row in rows], 4 / np.diff([0.0, *seconds]), rtol=1e-6)
    rates = learning_rates(12)
    np.testing.assert_allclose([row["learning_rate"] for row in rows], rates[[3, 7, 11]], rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer, has",
    [
        (optax.inject_hyperparams(optax.sgd)(learning_rate=0.125), True),
        (optax.MultiSteps(optax.inject_hyperparams(optax.sgd)(learning_rate=0.125), 2), True),
        (optax.chain(*2 * [optax.inject_hyperparams(optax.sgd)(learning_rate=0.125)]), False),  # which of the two?
        (optax.sgd(0.125), False),
    ],
)
def test_the_learning_rate_is_logged_if_the_state_has_one(tmp_path, optimizer, has):
    train(tmp_path / "run", num_steps=2, optimizer=optimizer)
    (row,) = read_log(tmp_path / "run")
    assert row.get("learning_rate") == (0.125 if has else None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_meta_optimizer_is_adamw_to_the_bit(dtype):
    schedule = optax.warmup_cosine_decay_schedule(3e-10, 3e-3, 10, 50, 1e-3)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
    results = []
    for optimizer in (meta_optimizer(50, warmup=10), plain):
        theta = jax.random.normal(jax.random.key(0), (40,), dtype)
        state, update = optimizer.init(theta), jax.jit(optimizer.update)
        for t in range(20):
            updates, state = update(jax.random.normal(jax.random.key(t), (40,), dtype), state, theta)
            theta = optax.apply_updates(theta, updates)
        results.append(theta)
    assert_identical(*results)


def test_the_meta_optimizer_keeps_dtypes():
    theta = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16)}
    optimizer = meta_optimizer(10)
    updates, state = optimizer.update(theta, optimizer.init(theta), theta)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, theta)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, optimizer.init(theta))


# Callbacks.


def test_a_callback_is_called_with_the_learner_and_its_numbers_are_logged(finished, tmp_path):
    seen = {}

    def validate(step, learner):
        seen[step] = learner
        return {"validation": float(step) / 2, "rate": learner.hyperparameters["learning_rate"]}

    learner = train(tmp_path / "run", callback=validate, callback_every=10)
    assert_identical(learner, finished[1])
    assert list(seen) == [10, 20, 30]
    assert_identical(seen[30], learner)  # its arrays were not given to the next step
    rates = [float(x.hyperparameters["learning_rate"]) for x in seen.values()]
    assert len(set(rates)) == 3 and not isinstance(rates[0], jax.core.Tracer)
    rows = {row["step"]: row for row in read_log(tmp_path / "run")}
    assert [step for step, row in rows.items() if "validation" in row] == [10, 20, 30]
    assert [(rows[step]["validation"], rows[step]["rate"]) for step in seen] == [
        (step / 2, rate) for step, rate in zip(seen, rates, strict=True)
    ]


def test_a_callback_is_called_with_each_row_and_after_the_last_step_and_may_return_nothing(tmp_path):
    steps = []
    train(num_steps=12, callback=lambda step, learner: steps.append(step))
    assert steps == [5, 10, 12]


def test_callbacks_do_not_count_as_training(tmp_path):
    train(tmp_path / "run", num_steps=10, callback=lambda step, learner: time.sleep(0.3), callback_every=5)
    rows = read_log(tmp_path / "run")
    assert rows[1]["seconds"] - rows[0]["seconds"] < 0.3 and rows[1]["steps_per_second"] > 5 / 0.3


@pytest.mark.parametrize("stop", [13, 15, 20])
def test_a_resumed_run_calls_the_callback_for_the_same_steps_and_has_the_same_rows(tmp_path, monkeypatch, stop):
    calls = []

    def validate(step, learner):
        calls.append(step)
        return {"rate": learner.hyperparameters["learning_rate"]}

    options = dict(callback=validate, callback_every=10, every=5)
    whole = train(tmp_path / "whole", **options)
    assert calls == [10, 20, 30]
    calls.clear()
    with monkeypatch.context() as patch:
        interrupt_after(patch, _loop, "_step", stop + 1)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", **options)
    assert_identical(train(tmp_path / "run", **options), whole)
    assert calls == [10, 20, 30]  # none twice: the checkpoints are at the same steps
    assert without_times(read_log(tmp_path / "run")) == without_times(read_log(tmp_path / "whole"))
    seconds = [row["seconds"] for row in read_log(tmp_path / "run")]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    "returned, error, words",
    [
        ({"loss": 1.0}, ValueError, "must not return `loss`, which is another column"),
        ({"learning_rate": 1.0}, ValueError, "must not return `learning_rate`, which is another column"),
        ({"restarts": 1.0}, ValueError, "must not return `restarts`, which is another column"),
        ([1.0], TypeError, "must return a mapping from names to numbers, or `None`, got a list"),
        ({1: 1.0}, TypeError, "must return a mapping from names to numbers"),
        ({"x": jnp.ones(1000)}, TypeError, r"`x` is a ArrayImpl of shape \(1000,\); reduce it"),
        ({"x": "word"}, TypeError, "`x` is a str"),
    ],
)
def test_what_is_no_named_number_is_refused(tmp_path, returned, error, words):
    with pytest.raises(error, match=words) as refusal:
        train(tmp_path / "run", callback=lambda step, learner: returned)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize("options", [{"callback_every": 5}, {"callback": print, "callback_every": 7}])
def test_impossible_intervals_of_callbacks_are_refused(options):
    with pytest.raises(ValueError, match="`callback_every` needs a `callback` and must be a multiple of `log_every`"):
        train(**options)


# Meta-optimizers.


def test_multi_steps_updates_the_learner_every_few_meta_steps():
    learners, options = [], dict(num_steps=6, callback=lambda step, learner: learners.append(learner), log_every=1)
    train(optimizer=optax.MultiSteps(optax.sgd(0.01), 3), **options)
    rates = [float(learner.hyperparameters["learning_rate"]) for learner in learners]
    assert rates[0] == rates[1] == np.float32(0.01) and rates[2] == rates[3] == rates[4] and len(set(rates)) == 3


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 1)])
def test_a_meta_optimizer_gets_the_meta_loss(tmp_path, wrap):
    plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
    optimizer = wrap(optax.chain(optax.sgd(0.0), plateau))
    estimator = Given(SGD(jnp.asarray(1.0)), jnp.asarray(1.0))  # the meta-loss is always 1.5
    state = init_meta_state(SGD(jnp.asarray(0.0)), estimator, optimizer, key=KEY)
    step = eqx.filter_jit(meta_step)
    for _ in range(6):
        state, _ = step(state, estimator, optimizer)
    assert optax.tree.get(state.optimizer_state, "best_value") == 1.5
    assert optax.tree.get(state.optimizer_state, "scale") == 0.25


def test_meta_training_runs_under_the_debugger_of_jax_for_nan():
    estimator = PES(quadratic_unroll(steps=10, window=5), num_pairs=1)
    with jax.debug_nans(True):
        learner = SGD(jnp.asarray(0.01))
        meta_train(learner, estimator, num_steps=6, optimizer=OPTIMIZER, log_every=2, progress=None, key=KEY)


# Arguments that are mistaken often.

BIG = recipes.mulo(hidden_size=128, hidden_layers=4, key=jax.random.key(0))
MISTAKES = {
    "theta alone": (theta(BIG), ValueError, "no `pipeline/step_rule/step_mult`: it seems to be the result of `theta`"),
    "a recipe": (recipes.mulo, TypeError, r"got the function `mulo`; call it: `mulo\(...\)`"),
    "a class": (Mean, TypeError, r"got the class `Mean`; call it: `Mean\(...\)`"),
    "parameters": ({"w": jnp.ones(1000)}, TypeError, "got a dict; build one with a recipe"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_no_learner_is_refused_in_one_sentence(case):
    learner, error, words = MISTAKES[case]
    for function in (
        lambda: meta_train(learner, QUADRATIC, num_steps=1, progress=None, key=KEY),
        lambda: init_meta_state(learner, QUADRATIC, OPTIMIZER, key=KEY),
        lambda: evaluate(learner, TASK, num_steps=1, key=KEY),
        lambda: step_sizes(learner, TASK, num_steps=1, key=KEY),
    ):
        with pytest.raises(error, match=f"`learner` .*{words}") as refusal:
            function()
        assert len(str(refusal.value)) < 600 and str(refusal.value).count("\n") == 0


@pytest.mark.parametrize("optimizer, words", [(optax.adam, "the function `adam`"), (SGD(0.1), "a OptaxOptimizer")])
def test_what_is_no_meta_optimizer_is_refused_in_one_sentence(optimizer, words):
    with pytest.raises(TypeError, match=f"`optimizer` must be an optax transformation, .* got {words}") as refusal:
        meta_train(BIG, QUADRATIC, num_steps=1, optimizer=optimizer, progress=None, key=KEY)
    assert len(str(refusal.value)) < 600


def test_learners_that_may_hold_none_are_accepted():
    for learner in (
        SGD(0.1),
        Mean(),
        BIG,
        optax.adam(1e-3),
        recipes.lagg_a(num_workers=2, key=KEY),
        Drift(jnp.ones(3)),
    ):
        _arguments._check_learner(learner)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"log_every": 0}, {"num_steps": -1}])
def test_impossible_numbers_of_steps_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="`num_steps` and `log_every` must be at least 1"):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["every", "keep"])
def test_no_checkpoints_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        Checkpoints(tmp_path, {}, **{name: 0})


# Stopping and continuing.


def interrupt_after(monkeypatch, owner, name, calls):
    """Make `owner.name` raise KeyboardInterrupt in its n-th call."""
    function, count = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        count.append(1)
        if len(count) == calls:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


def interrupt_at(monkeypatch, owner, name, text):
    """Make `owner.name` raise KeyboardInterrupt once `text` is in its arguments."""
    function = getattr(owner, name)

    def wrapper(*args, **kwargs):
        if text in str(args):
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


INTERRUPTIONS = {  # what raises at which argument, the step of the last checkpoint
    "before the first checkpoint": (_run_folder.RunFolder, "log", "'step': 5", 0),
    "in the log": (_run_folder.RunFolder, "log", "'step': 20", 14),
    "in the best checkpoint": (os, "replace", "/best.safetensors", 0),
    "in a checkpoint": (_checkpoints, "save_arrays", "checkpoint-00000014", 7),
    "while a checkpoint is put in place": (os, "replace", "checkpoint-00000021", 14),
    "while an old checkpoint is removed": (Path, "unlink", "checkpoint-00000007", 21),
    "in the last checkpoint": (_checkpoints, "save_arrays", "checkpoint-00000030", 28),
}


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_an_interrupted_run_continues_to_the_same_learner(finished, tmp_path, monkeypatch, case):
    owner, name, text, resumed = INTERRUPTIONS[case]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, owner, name, text)
        with pytest.raises(KeyboardInterrupt):
            train(folder)
    assert [path.name for path in checkpoints_in(folder)[-1:]] == [f"checkpoint-{resumed:08d}.safetensors"] * (
        resumed > 0
    )
    assert not [name for name in contents(folder) if name.startswith(".")]
    assert_identical(train(folder), finished[1])
    assert [row["step"] for row in read_log(folder)] == [5, 10, 15, 20, 25, 30]
    assert without_times(read_log(folder)) == without_times(read_log(finished[0]))


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_run_interrupted_again_and_again_continues_to_the_same_learner(finished, tmp_path, monkeypatch):
    for calls in (3, 2, 3):
        with monkeypatch.context() as patch:
            interrupt_after(patch, _run_folder.RunFolder, "log", calls)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "run")
    assert_identical(train(tmp_path / "run"), finished[1])
    assert [row["step"] for row in read_log(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]


def test_a_log_line_cut_short_is_written_again(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, _run_folder.RunFolder, "log", 4)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 20, "los')
    assert_identical(train(tmp_path / "run"), finished[1])
    assert [row["step"] for row in read_log(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]


def test_a_finished_run_is_read_and_not_repeated(finished, copied, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr(_loop, "_step", None)
    assert_identical(train(copied), finished[1])
    assert_identical(train(str(copied)), finished[1])
    assert contents(copied) == before


def test_a_longer_run_continues_a_finished_one(copied):
    longer = train(copied, num_steps=40)
    assert_identical(longer, train(num_steps=40))
    assert [row["step"] for row in read_log(copied)] == [5, 10, 15, 20, 25, 30, 35, 40]


def test_a_shorter_run_than_the_folder_holds_is_refused(copied):
    before = contents(copied)
    with pytest.raises(ValueError, match="`num_steps` is 20, but this run has taken 30 meta-steps"):
        train(copied, num_steps=20)
    assert contents(copied) == before


CHILD = """
import sys
import jax, jax.numpy as jnp, optax
from lo_components.aggregators import Mean
from lo_components.estimators import PES
from lo_components.estimators._base import COLUMNS
from lo_components.meta import Checkpoints, meta_train
from lo_components.optimizers import OptaxOptimizer
from lo_components.tasks import Quadratic
from lo_components.unroll import ConstantHorizon, LocalRound, TruncatedUnroll

estimator = PES(TruncatedUnroll(Quadratic(jnp.asarray([1.0, -2.0, 0.5])), ConstantHorizon(10), 5), num_pairs=2)
checkpoints = Checkpoints(sys.argv[1], {}, every=50)
learner = meta_train(
    OptaxOptimizer(optax.sgd, jnp.asarray(0.01)), estimator, num_steps=int(sys.argv[2]), optimizer=optax.adam(1e-4),
    checkpoints=checkpoints, log_every=20, progress=None, key=jax.random.key(0),
)
print(float(learner.hyperparameters["learning_rate"]).hex())
"""


def start_child(folder, num_steps):
    command = [sys.executable, "-c", CHILD, str(folder), str(num_steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_continues_to_the_same_learner(tmp_path, kill):
    num_steps = 5000
    child = start_child(tmp_path / "run", num_steps)
    deadline = time.monotonic() + 120
    while not checkpoints_in(tmp_path / "run"):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(kill)
    _, error = child.communicate(timeout=120)
    assert child.returncode != 0 and ("KeyboardInterrupt" in error) == (kill == signal.SIGINT)
    assert read_log(tmp_path / "run")[-1]["step"] < num_steps
    children = [start_child(tmp_path / name, num_steps) for name in ("run", "whole")]
    continued, whole = (child.communicate(timeout=300)[0] for child in children)
    assert continued == whole != ""
    assert [row["step"] for row in read_log(tmp_path / "run")] == list(range(20, num_steps + 1, 20))


# Folders and checkpoints that are not what they should be.


def refused(folder, error, message, **options):
    """Check that a run is refused for the given reason."""
    with pytest.raises(error, match=message):
        train(folder, **options)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_checkpoints_cut_short_are_refused_and_kept(copied, share):
    for path in checkpoints_in(copied):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    before = contents(copied)
    message = (
        f"`{copied}` has no usable checkpoint. `{path}` is cut short, .*Nothing was changed. Restore .* start the run"
    )
    refused(copied, CheckpointError, message)
    assert contents(copied) == before


@pytest.mark.parametrize("position", [0, 20, 100, 400, -1])
def test_checkpoints_with_a_flipped_byte_are_refused_and_kept(copied, position):
    for path in checkpoints_in(copied):
        data = bytearray(path.read_bytes())
        data[position] ^= 0x04
        path.write_bytes(data)
    before = contents(copied)
    refused(copied, CheckpointError, f"`{path}` .*delete these files to start the run over")
    assert contents(copied) == before


def test_foreign_checkpoints_are_refused_and_kept(copied):
    foreign = [({"w": jnp.ones(3)}, "belongs to something else"), ({}, "lacks array")]
    for path, (tree, _) in zip(checkpoints_in(copied), foreign, strict=True):
        save_arrays(path, tree)
    before = contents(copied)
    for path, (_, message) in zip(checkpoints_in(copied), foreign, strict=True):
        refused(copied, CheckpointError, f"`{path}` .*{message}.*delete these files")
    assert contents(copied) == before


def test_checkpoints_of_another_configuration_are_refused_and_kept(copied, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "run"
    train(other, num_steps=2, config={"task": "other"})
    for path in checkpoints_in(copied):
        path.write_bytes((other / "checkpoint-00000002.safetensors").read_bytes())
    before = contents(copied)
    refused(copied, CheckpointError, f"`{path}` belongs to a run with another configuration")
    assert contents(copied) == before


def test_checkpoints_of_another_learner_are_refused_and_kept(copied):
    (copied / "constants.json").unlink()
    before = contents(copied)
    message = r"holds `learner/hyperparameters/learning_rate` as float32\[\], expected float32\[1\]"
    refused(copied, CheckpointError, message, learner=SGD(jnp.full(1, 0.01)))
    assert {**contents(copied), "constants.json": b""} == {**before, "constants.json": b""}


def test_without_its_checkpoints_a_run_starts_over(copied, finished):
    for path in checkpoints_in(copied):
        path.unlink()
    assert_identical(train(copied), finished[1])
    assert [row["step"] for row in read_log(copied)] == [5, 10, 15, 20, 25, 30]
    assert set(contents(copied)) == set(contents(finished[0]))


def test_a_folder_of_another_configuration_is_refused_and_kept(copied):
    before = contents(copied)
    message = f"`{copied}` belongs to a run with another configuration .`rate` is 0.05 there, 0.1 here.*left untouched"
    refused(copied, FileExistsError, message, config={**CONFIG, "rate": 0.1})
    refused(copied, FileExistsError, "another configuration .`extra` is None there, 1", config={**CONFIG, "extra": 1})
    (copied / "config.json").write_text("{not json")
    refused(copied, FileExistsError, "another configuration; it was left untouched")
    (copied / "config.json").write_bytes(b"\xff\xfe")
    refused(copied, FileExistsError, "another configuration; it was left untouched")
    assert {**contents(copied), "config.json": b""} == {**before, "config.json": b""}


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused(tmp_path, FileExistsError, rf"`{tmp_path}` holds something else \(thesis.tex\); it was left untouched")
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    train(tmp_path / "empty", num_steps=1)
    assert len(contents(tmp_path / "empty")) == 4  # no whole interval, so nothing is the best


def test_a_file_in_place_of_the_folder_is_refused_and_kept(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    refused(path, FileExistsError, f"`{path}` is a file; give a folder")
    refused(path / "below", PermissionError, f"`{path / 'below'}` cannot be written to .*; choose another folder")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, existing):
    folder = tmp_path / "locked"
    if existing:
        folder.mkdir()

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_run_folder, "write_atomically", deny)
    if not existing:
        monkeypatch.setattr(Path, "mkdir", deny)
    refused(folder, PermissionError, f"`{folder}` cannot be written to .Permission denied.; choose another folder")
    assert folder.exists() == existing and not (existing and contents(folder))


# Meta-testing.

TASK = toy_task()
KEY = jax.random.key(2)


def test_curves_have_one_row_per_seed_and_depend_on_the_key():
    first, again, other = (evaluate(SGD(0.1), TASK, num_steps=30, key=jax.random.key(k)) for k in (0, 0, 1))
    assert first.losses.shape == (3, 30) and first.finite.shape == (3,) and np.all(first.finite)
    assert_identical(again, first)
    assert not np.any(np.asarray(other.losses) == np.asarray(first.losses))
    assert len(np.unique(first.losses[:, 0])) == 3
    assert np.mean(first.losses[:, -5:]) < 0.8 * np.mean(first.losses[:, :5])


def test_a_seed_depends_on_its_index_alone():
    few, many = (evaluate(SGD(0.1), Noisy(), num_steps=30, num_seeds=n, key=KEY).losses for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-5)


def test_optimizers_compared_under_one_key_start_equal():
    sgd, adam, idle = (evaluate(opt, Noisy(), num_steps=30, key=KEY).losses for opt in (SGD(0.1), Adam(0.1), SGD(0.0)))
    np.testing.assert_allclose(sgd[:, 0], adam[:, 0], rtol=1e-6)
    np.testing.assert_allclose(sgd[:, 0], idle[:, 0], rtol=1e-6)
    assert not np.any(np.isclose(sgd[:, 2:], adam[:, 2:], rtol=1e-6))
    # Without training, what remains are the batches.
    assert np.all(np.std(idle, axis=1) > 1e-3)


def test_quadratic_curves_are_known():
    curves = evaluate(SGD(0.25), Quadratic(jnp.asarray(START)), num_steps=6, num_seeds=2, key=KEY)
    expected = 0.5 * np.sum(START**2) * 0.75 ** (2 * np.arange(6))
    np.testing.assert_allclose(curves.losses, np.stack([expected, expected]), rtol=1e-5)


@pytest.mark.parametrize("seeds_at_once", [1, 2, 9])
def test_seeds_run_one_after_the_other_give_the_same_curves(seeds_at_once):
    together = evaluate(SGD(0.1), Noisy(), num_steps=30, num_seeds=5, key=KEY)
    apart = evaluate(SGD(0.1), Noisy(), num_steps=30, num_seeds=5, seeds_at_once=seeds_at_once, key=KEY)
    np.testing.assert_allclose(apart.losses, together.losses, rtol=1e-5)


def test_a_second_call_compiles_nothing():
    optimizer = Counting(jnp.asarray(0.1), HashableList())
    evaluate(optimizer, Noisy(), num_steps=30, key=KEY)
    assert optimizer.traces
    optimizer.traces.clear()
    evaluate(Counting(jnp.asarray(0.2), optimizer.traces), Noisy(), num_steps=30, key=jax.random.key(8))
    assert not optimizer.traces


def test_final_is_the_mean_of_the_last_steps():
    curves = evaluate(SGD(0.25), Quadratic(jnp.asarray(START)), num_steps=30, num_seeds=2, key=KEY)
    np.testing.assert_allclose(curves.final(3), np.mean(curves.losses[:, 27:], axis=1), rtol=1e-6)
    np.testing.assert_allclose(curves.final(), np.mean(curves.losses[:, 10:], axis=1), rtol=1e-6)
    np.testing.assert_allclose(curves.final(1), curves.losses[:, -1], rtol=1e-6)
    for last in (0, -2):
        with pytest.raises(ValueError, match=f"`last` must be at least 1, got {last}"):
            curves.final(last)


def test_steps_to_a_loss_count_until_the_mean_of_the_last_losses_is_there():
    losses = jnp.array([[5.0, 4.0, 3.0, 2.0, 1.0, 6.0], [5.0, jnp.nan, 1.0, 1.0, 1.0, 1.0]])
    evaluation = Evaluation(losses, jnp.array([True, False]))
    np.testing.assert_array_equal(evaluation.steps_to(2.5, last=2), [4, 4])
    np.testing.assert_array_equal(evaluation.steps_to(3.0, last=5), [5, np.inf])
    np.testing.assert_array_equal(evaluation.steps_to(5.0, last=1), [1, 1])
    assert evaluation.steps_to(0.5).tolist() == [np.inf, np.inf]  # with fewer steps than are averaged
    spiked = Evaluation(jnp.array([[1e9] + [1.0] * 100, [jnp.nan] + [0.1] * 100]), jnp.array([True, False]))
    np.testing.assert_array_equal(spiked.steps_to(0.5), [np.inf, 21])
    with pytest.raises(ValueError, match="`last` must be at least 1"):
        evaluation.steps_to(1.0, last=0)


def test_aggregators_are_evaluated_round_by_round():
    inner = LocalRound(2, 3, SGD(0.1))
    curves = evaluate(Mean(), Quadratic(jnp.asarray(START)), num_steps=5, inner_step=inner, num_seeds=2, key=KEY)
    # Without noise every worker does the same three steps.
    steps = evaluate(SGD(0.1), Quadratic(jnp.asarray(START)), num_steps=15, num_seeds=2, key=KEY)
    np.testing.assert_allclose(curves.losses, steps.losses[:, ::3], rtol=1e-5)
    assert steps.used is None and jnp.all(curves.used == 1.0) and curves.used.shape == (2, 5)


def test_a_diverging_run_is_reported_and_left_as_it_is():
    curves = evaluate(SGD(1e30), Quadratic(jnp.asarray(START)), num_steps=5, num_seeds=2, key=KEY)
    assert not np.any(curves.finite)
    np.testing.assert_allclose(curves.losses[:, 0], 0.5 * np.sum(START**2))
    assert np.all(~np.isfinite(curves.losses[:, -1]))


@pytest.mark.parametrize("sizes", [{"num_steps": 0}, {"num_seeds": 0}, {"seeds_at_once": 0}, {"seeds_at_once": -1}])
def test_impossible_sizes_are_refused_by_name(sizes):
    (name,) = sizes
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {sizes[name]}"):
        evaluate(SGD(0.1), TASK, **{"num_steps": 5, "key": KEY, **sizes})


def test_step_sizes_are_the_root_mean_squares_of_the_updates():
    sizes = step_sizes(SGD(0.5), Quadratic(jnp.asarray(START)), num_steps=3, key=jax.random.key(0))
    expected = [0.5 ** (t + 1) * np.sqrt(np.mean(START**2)) for t in range(3)]
    np.testing.assert_allclose(list(sizes.values()), [expected], rtol=1e-6)
    assert set(step_sizes(SGD(0.1), toy_task(), num_steps=2, key=jax.random.key(0))) == {
        f"layers/{i}/{name}" for i in range(3) for name in ("weight", "bias")
    }


def test_a_thousand_meta_steps_trace_the_learner_as_often_as_one():
    def traces(num_steps):
        learner = Counting(jnp.asarray(0.1), HashableList())
        estimator = PES(quadratic_unroll(steps=20, window=5), num_pairs=2)
        meta_train(
            learner, estimator, num_steps=num_steps, optimizer=optax.sgd(1e-3), progress=None, key=jax.random.key(0)
        )
        return len(learner.traces)

    assert traces(1000) == traces(1) > 0
