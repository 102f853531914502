"""Batches from a stream, in meta-training and in evaluation."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from helpers import SGD, Adam
from meta_helpers import Counting, HashableList, assert_identical, toy_images, toy_task

from lo_components import meta, weights
from lo_components.aggregators import Mean, SlowMo
from lo_components.data import AbstractBatchIterator, pipeline, windows
from lo_components.estimators import PES, Mixture, TruncatedES
from lo_components.meta import evaluate
from lo_components.parametrization import SP, AbstractParametrization
from lo_components.tasks import AbstractTask, ReducedBatch, Streamed, streamed_tasks, with_window
from lo_components.unroll import LocalRound, TruncatedUnroll

pytest.importorskip("grain")
pytestmark = pytest.mark.usefixtures("standard_promotion")

KEY = jax.random.key(3)
# The same objects in all tests, so that most programs are compiled once.
TASK, WIDER, OPTIMIZER = toy_task(depth=1), toy_task(depth=1, width=8), optax.adam(0.05)


class Numbers:
    """A source whose example `i` is `i`."""

    def __init__(self, count=1000):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.float32(index)


def numbers(**options):
    """Batches of one number, in order."""
    return pipeline(Numbers(), 1, seed=0, **{"shuffle": False, **options})


class Recording(AbstractTask):
    """Its loss is the number in its batch, so that losses show the batches; and parts of parameters and key."""

    parts: float = eqx.field(default=0.0, static=True)
    widths: Any = None
    parametrization: AbstractParametrization = SP()
    max_loss: float = eqx.field(default=math.inf, static=True)

    def init(self, *, key):
        return jax.random.normal(key, (3,))

    def batch(self, *, key, split="train", worker=None):
        return jnp.full((1,), -1.0)

    def loss(self, params, batch, *, key):
        return batch[0] + self.parts * (jnp.sum(jnp.square(params)) + jax.random.uniform(key))


def stream(**options):
    return pipeline(toy_images(), 8, **{"seed": 1, **options})


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def window(count=3):
    with closing(windows(stream(), count)) as stacked:
        return next(stacked)


# The task.


def test_training_batches_are_chosen_uniformly_from_the_window():
    task = with_window(Streamed(Recording(), 4), np.arange(4, dtype=np.float32)[:, None])
    batches = jax.vmap(lambda key: task.batch(key=key))(jax.random.split(KEY, 4000))
    counts = np.bincount(np.asarray(batches)[:, 0].astype(int))
    assert batches.shape == (4000, 1) and np.all(np.abs(counts - 1000) < 5 * math.sqrt(4000 * 3 / 16))
    np.testing.assert_array_equal(task.batch(key=KEY, split="test"), [-1.0])


def test_a_streamed_task_is_otherwise_the_task_itself():
    task, streamed = TASK, Streamed(TASK, 3)
    params = task.init(key=KEY)
    assert_identical(streamed.init(key=KEY), params)
    assert (streamed.max_loss, streamed.parametrization) == (task.max_loss, task.parametrization)
    assert streamed.widths == task.widths
    assert_identical(streamed.metrics(params, split="test", key=KEY), task.metrics(params, split="test", key=KEY))
    batch = task.batch(key=KEY)
    assert_identical(streamed.loss(params, batch, key=KEY), task.loss(params, batch, key=KEY))


def test_a_streamed_task_without_a_window_is_refused():
    streamed = Streamed(TASK, 3)
    estimator = PES(TruncatedUnroll(streamed, 4, 2), num_pairs=1)
    for attempt in (
        lambda: streamed.batch(key=KEY),
        lambda: evaluate(SGD(0.1), streamed, num_steps=2, key=KEY),
        lambda: meta.meta_train(SGD(jnp.asarray(0.1)), estimator, num_steps=2, key=KEY),
        lambda: with_window(with_window(streamed, window()), None).batch(key=KEY),
    ):
        with pytest.raises(ValueError, match="`Streamed` has no window of batches yet: pass `stream="):
            attempt()
    with pytest.raises(ValueError, match="`num_batches` must be at least 1, got 0"):
        Streamed(TASK, 0)


def test_a_window_is_put_into_every_streamed_task_of_a_tree():
    tasks = [Streamed(task, 3) for task in (TASK, WIDER)]
    unrolls = [TruncatedUnroll(task, 4, 2) for task in (tasks[0], ReducedBatch(tasks[1]), TASK)]
    estimator = Mixture([PES(unroll, num_pairs=1) for unroll in unrolls])
    assert streamed_tasks(estimator) == tasks
    filled = with_window(estimator, window())
    assert jax.tree.structure(with_window(filled, None)) == jax.tree.structure(estimator)
    for task in streamed_tasks(filled):
        assert_identical(task.batches, jax.tree.map(jnp.asarray, window()))
    assert_identical(filled.estimators[2], estimator.estimators[2])


@pytest.mark.parametrize("filled", [False, True])
def test_other_windows_are_refused(filled):
    task = Streamed(TASK, 3)
    task = with_window(task, window()) if filled else task
    images, labels = window()
    for batches, words in (
        (window(count=4), r"at `0` got float32\(4, 8, 2\), expected float32\(3, 8, 2\)"),
        ((images[:, :4], labels), r"at `0` got float32\(3, 4, 2\), expected float32\(3, 8, 2\)"),
        ((images.astype(np.uint8), labels), r"at `0` got uint8\(3, 8, 2\), expected float32\(3, 8, 2\)"),
        ((images, labels.astype(np.int16)), r"at `1` got int16\(3, 8\), expected int32\(3, 8\)"),
        (images, "it lacks `0` and 1 more"),
        ({"0": images, "1": labels}, "it has the same leaves in other containers"),
        ((images, labels, labels), "it also has `2`"),
    ):
        with pytest.raises(ValueError, match=f"`batches` must be 3 stacked batches like .*{words}") as error:
            with_window(task, batches)
        assert len(str(error.value)) < 250
    with pytest.raises(ValueError, match="`tree` has no `lo_components.tasks.Streamed`"):
        with_window(TASK, window())


def test_each_worker_chooses_its_own_batch():
    task = with_window(Streamed(Recording(), 50), np.arange(50, dtype=np.float32)[:, None])
    losses, _ = LocalRound(8, 3, SGD(0.1)).local(task, jnp.zeros(3), *LocalRound(8, 3).workers(key=KEY))
    assert len(set(losses.tolist())) > 4


def test_new_windows_do_not_compile_the_meta_step_again():
    traces, learner = [], Counting(jnp.asarray(0.1), HashableList())
    estimator, optimizer = PES(TruncatedUnroll(Streamed(TASK, 3), 4, 2), num_pairs=1), optax.sgd(0.1)
    step = eqx.filter_jit(meta.meta_step)
    with closing(windows(stream(), 3)) as stacked:
        estimator = with_window(estimator, next(stacked))
        state = meta.init_meta_state(learner, estimator, optimizer, key=KEY)
        for _ in range(4):
            before = state
            state, _ = step(state, estimator, optimizer)
            traces.append(len(learner.traces))
            estimator = with_window(estimator, next(stacked))
    assert len(set(traces)) == 1
    # And they are used: another window gives another gradient.
    thetas = [
        step(before, with_window(estimator, w), optimizer)[0].learner
        for w in (window(), jax.tree.map(jnp.zeros_like, window()))
    ]
    assert thetas[0].learning_rate != thetas[1].learning_rate


# Evaluation.


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_step_t_sees_batch_t_and_so_do_all_seeds(size):
    with closing(numbers()) as batches:
        found = evaluate(SGD(0.0), Streamed(Recording(), size), num_steps=10, stream=batches, key=KEY)
        np.testing.assert_array_equal(found.losses, np.tile(np.arange(10.0), (3, 1)))
        next(batches)
        found = evaluate(SGD(0.0), Streamed(Recording(), size), num_steps=10, stream=batches, key=KEY)
        np.testing.assert_array_equal(found.losses[0], np.arange(1.0, 11.0))
        assert batches.state()["batches"] == 1 and next(batches) == 1.0


def test_a_stream_changes_only_the_batches():
    class Same(Numbers):
        def __getitem__(self, index):
            return np.float32(-1)

    options = dict(num_steps=7, num_seeds=2, key=KEY)
    expected = evaluate(Adam(0.1), Recording(1.0), **options)
    with closing(pipeline(Same(), 1, seed=0)) as batches:
        found = evaluate(Adam(0.1), Streamed(Recording(1.0), 3), stream=batches, **options)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)
    assert found.used is None and found.finite.all() and len(set(found.losses[:, 0].tolist())) == 2


def test_the_size_of_windows_does_not_change_an_evaluation():
    def evaluated(size, **options):
        with closing(stream()) as batches:
            return evaluate(
                Adam(0.1), Streamed(TASK, size), num_steps=11, num_seeds=3, splits=("train", "test"),
                metrics_every=4, stream=batches, key=KEY, **options,
            )  # fmt: skip

    expected = evaluated(4)
    assert expected.metric_steps.tolist() == [4, 8, 11]
    for size in (1, 5, 20):
        assert_identical(evaluated(size), expected)
    assert_identical(evaluated(5, seeds_at_once=2), evaluated(7, seeds_at_once=2))


def test_an_evaluation_is_training_on_the_batches_of_the_stream():
    task = TASK
    init_key, steps_key = jax.random.split(jax.random.fold_in(KEY, 0))
    params, losses = task.init(key=init_key), []
    state = SGD(0.3).init(params)
    with closing(stream()) as batches:
        for t in range(9):
            batch = jax.tree.map(jnp.asarray, next(batches))
            loss, grads = jax.jit(jax.value_and_grad(task.loss))(params, batch, key=jax.random.fold_in(steps_key, t))
            updates, state = SGD(0.3).update(grads, state, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
    with closing(stream()) as batches:
        found = evaluate(
            SGD(0.3), Streamed(task, 4), num_steps=9, num_seeds=1, splits=("test",), stream=batches, key=KEY
        )
    np.testing.assert_allclose(found.losses[0], losses, rtol=1e-5)
    expected = task.metrics(params, split="test", key=KEY)
    np.testing.assert_allclose(found.metrics["test"]["loss"][0], expected["loss"][None], rtol=1e-5)


def test_a_round_takes_a_window_to_itself():
    inner_step = LocalRound(20, 2, SGD(0.1))
    with closing(numbers()) as batches:
        found = evaluate(Mean(), Streamed(Recording(), 6), num_steps=5, inner_step=inner_step, stream=batches, key=KEY)
    assert found.losses.shape == found.used.shape == (3, 5)
    offsets = np.asarray(found.losses) - (np.arange(5) * 6 + 2.5)
    # The mean of 20 numbers, uniform among six, has a standard deviation of 0.38.
    assert np.all(np.abs(offsets) < 5 * 0.38) and len(set(offsets.ravel().tolist())) > 5


def test_all_windows_of_an_evaluation_share_a_compiled_program():
    traces = []
    for steps in (4, 20, 21):
        learner = Counting(jnp.asarray(0.1), HashableList())
        with closing(stream()) as batches:
            evaluate(learner, Streamed(TASK, 4), num_steps=steps, stream=batches, key=KEY)
        traces.append(len(learner.traces))
    assert traces[0] == traces[1] == traces[2] > 0


def test_streams_that_cannot_be_evaluated_are_refused():
    task, options = Streamed(TASK, 2), dict(num_steps=6, key=KEY)
    once = stream(repeat=False)
    with pytest.raises(ValueError, match="`stream` ended within window 2 of 2 batches; pass a"):
        evaluate(SGD(0.1), task, stream=once, **options)
    assert once.state()["batches"] == 0
    with pytest.raises(ValueError, match=r"`stream` needs a task .*: wrap the task, `lo_components.tasks.Streamed\("):
        evaluate(SGD(0.1), TASK, stream=once, **options)
    with pytest.raises(ValueError, match="`batches` must be 2 stacked batches like those of .*: it lacks `0`"):
        evaluate(SGD(0.1), task, stream=numbers(), **options)
    with pytest.raises(TypeError, match="`splits` needs a task with metrics, but Recording is not an"):
        evaluate(SGD(0.1), Streamed(Recording(), 2), stream=numbers(), splits=("test",), **options)
    with pytest.raises(TypeError, match="`stream` is read between compiled calls, so it cannot be used inside `sweep`"):
        meta.sweep(lambda rate: evaluate(SGD(rate), task, stream=once, **options), jnp.ones(2))


# Meta-training.


class Failing(AbstractBatchIterator):
    """A stream that cannot be read from batch `at` on."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __next__(self):
        if self.state()["batches"] >= self.at:
            raise OSError("the disk is gone")
        return next(self.batches)

    def state(self):
        return self.batches.state()

    def restore(self, state):
        self.batches.restore(state)

    def close(self):
        self.batches.close()


def estimator(size=3, **options):
    return PES(TruncatedUnroll(Streamed(TASK, size), 6, 2, **options), num_pairs=2)


def train(folder=None, batches=None, *, num_steps=7, of=None, **options):
    checkpoints = None if folder is None else meta.Checkpoints(folder, {}, every=2)
    return meta.meta_train(
        SGD(jnp.asarray(0.1)),
        estimator() if of is None else of,
        num_steps=num_steps,
        optimizer=OPTIMIZER,
        checkpoints=checkpoints,
        stream=stream() if batches is None else batches,
        log_every=1,
        progress=None,
        key=KEY,
        **options,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("streams") / "whole", []


@pytest.fixture
def whole(finished):
    """The folder and the learner of a run that was never interrupted."""
    folder, learners = finished
    if not learners:  # not in the other fixture, which precedes the settings of the compiler
        learners.append(train(folder))
    return folder, learners[0]


def arrays(folder):
    return safetensors.numpy.load_file(folder / "checkpoint-00000007.safetensors")


@pytest.mark.parametrize("at", [3, 13])
def test_a_run_that_an_error_of_the_stream_ended_continues_to_the_same_bits(whole, tmp_path, at):
    """The first error comes before the first checkpoint; the second at meta-step 5, after the checkpoint of step 4."""
    batches = stream()
    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path, Failing(batches, at))
    assert batches.state()["batches"] == 0 and not reader_threads()
    for again in (batches, stream()):
        shutil.copytree(tmp_path, tmp_path.with_name("again"))
        assert_identical(train(tmp_path.with_name("again"), again), whole[1])
        assert_identical(arrays(tmp_path.with_name("again")), arrays(whole[0]))
        shutil.rmtree(tmp_path.with_name("again"))


def test_a_finished_run_is_read_and_its_stream_stays_where_it_was(whole):
    batches = stream()
    assert_identical(train(whole[0], batches), whole[1])
    assert batches.state()["batches"] == 0
    saved = weights.load_arrays(whole[0] / "checkpoint-00000006.safetensors", like=state_of_train())[1]
    assert saved["stream"] == {**batches.state(), "batches": 18}
    assert_identical(train(), whole[1])  # without a folder


def state_of_train():
    filled = with_window(estimator(), window())
    return meta.init_meta_state(SGD(jnp.asarray(0.1)), filled, OPTIMIZER, key=KEY)


def test_each_meta_step_takes_the_next_window(tmp_path):
    of = TruncatedES(TruncatedUnroll(Streamed(Recording(), 4), 10, 5), num_pairs=3)
    train(tmp_path, numbers(), of=of, num_steps=5)
    losses = np.array([row["loss"] for row in meta.read_log(tmp_path)])
    offsets = losses - 4 * np.arange(5)
    assert np.all((offsets > 0) & (offsets < 3)) and len(set(offsets.tolist())) > 1


def test_the_window_is_no_part_of_what_identifies_a_run(whole, tmp_path):
    with open(whole[0] / "constants.json") as file:
        names = json.load(file)
    assert not [name for name in names if "batches/" in name]
    shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint-00000007.safetensors").unlink()
    assert_identical(train(tmp_path / "copy", of=with_window(estimator(), window())), whole[1])


def test_other_streams_are_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")

    def attempt(message, batches, **options):
        # A finished run, whose learner is only returned, and one that would go on.
        for num_steps in (7, 9):
            with pytest.raises(FileExistsError, match=message) as found:
                train(tmp_path / "copy", batches, num_steps=num_steps, **options)
            assert len(str(found.value)) < 600 + len(str(tmp_path))

    attempt("`stream and its first window/0/seed` is 1 there, 2 here", stream(seed=2))
    attempt(r"`estimator/unroll/task/num_batches` is 3 there, 4 here", stream(), of=estimator(4))
    with pytest.raises(FileExistsError, match="`stream` is passed there, none here"):
        meta.meta_train(
            SGD(jnp.asarray(0.1)), estimator(), num_steps=9, optimizer=OPTIMIZER, progress=None, key=KEY,
            checkpoints=meta.Checkpoints(tmp_path / "copy", {}),
        )  # fmt: skip


def test_streams_that_an_estimator_cannot_use_are_refused(tmp_path):
    once = stream(repeat=False)  # three batches
    with pytest.raises(ValueError, match="`stream` ended within window 2 of 3 batches; pass a `pipeline` with"):
        train(tmp_path, once)
    plain = PES(TruncatedUnroll(TASK, 6, 2), num_pairs=1)
    with pytest.raises(ValueError, match=r"`stream` needs a task .*: wrap the task, `lo_components.tasks.Streamed\("):
        train(of=plain)
    with pytest.raises(ValueError, match=r"`stream` needs tasks with one `num_batches`, got \[3, 4\]"):
        train(of=Mixture([estimator(3), estimator(4)]))
    with pytest.raises(ValueError, match="`batches` must be 3 stacked batches like those of .*: it lacks `0`"):
        train(batches=numbers())


def test_a_callback_cannot_read_the_stream_of_the_run():
    def validate(batches):
        return lambda step, learner: {
            "valid": evaluate(
                learner, Streamed(TASK, 2), num_steps=2, num_seeds=1, stream=batches, key=KEY
            ).losses.mean()
        }

    batches = stream()
    with pytest.raises(ValueError, match="`stream` is in use by another call, for instance around a callback"):
        train(batches=batches, callback=validate(batches))
    assert_identical(train(batches=batches, num_steps=2, callback=validate(stream())), train(num_steps=2))


@pytest.mark.parametrize("split", [None, "train"])
def test_meta_training_on_a_stream_traces_once(split):
    traces = []
    for num_steps in (1, 4):
        learner = Counting(jnp.asarray(0.1), HashableList())
        meta.meta_train(
            learner, estimator(split=split), num_steps=num_steps, optimizer=OPTIMIZER, stream=stream(),
            progress=None, key=KEY,
        )  # fmt: skip
        traces.append(len(learner.traces))
    assert traces[0] == traces[1] > 0


def test_a_mixture_of_estimators_and_rounds_of_workers_use_a_stream():
    found = train(of=Mixture([estimator(), PES(TruncatedUnroll(Streamed(WIDER, 3), 6, 2), num_pairs=1)]))
    assert np.isfinite(found.hyperparameters["learning_rate"])
    of = PES(TruncatedUnroll(Streamed(TASK, 3), 4, 2, LocalRound(2, 2)), num_pairs=1)
    learner = SlowMo(jnp.asarray(1.0), jnp.asarray(0.5))
    found = meta.meta_train(learner, of, num_steps=2, optimizer=OPTIMIZER, stream=stream(), progress=None, key=KEY)
    before, after = (jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)) for x in (learner, found))
    assert all(np.isfinite(after)) and [float(x) for x in before] != [float(x) for x in after]


DEVICES = """
import sys
sys.path.append({tests!r})
import jax, numpy as np
from jax import numpy as jnp
import optax
from helpers import SGD
from meta_helpers import toy_images, toy_task
import lo_components as loc
from lo_components import data, estimators, meta, sharding, tasks, unroll

assert len(jax.devices()) == 2
pes = estimators.PES(unroll.TruncatedUnroll(tasks.Streamed(toy_task(), 3), 6, 2), num_pairs=4)
found = []
for estimator in (pes, sharding.ParticleSharded(pes, sharding.make_mesh())):
    learner = SGD(jnp.asarray(0.1))
    found.append(meta.meta_train(
        learner, estimator, num_steps=4, optimizer=optax.sgd(0.1), stream=data.pipeline(toy_images(), 8, seed=1),
        progress=None, key=jax.random.key(0),
    ).hyperparameters["learning_rate"])
assert len(found[1].devices()) == 2
np.testing.assert_allclose(*map(np.asarray, found), rtol=1e-5)
assert abs(float(found[0]) - 0.1) > 1e-4
"""


@pytest.mark.slow
def test_particles_on_two_devices_see_the_same_windows_as_on_one():
    code = DEVICES.replace("{tests!r}", repr(str(Path(__file__).parent)))
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import lo_components as loc

class Images:
    def __len__(self): return 50
    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.standard_normal(2).astype(np.float32), np.int32(index % 3)

pixels = np.stack([Images()[i][0] for i in range(9)])
dataset = loc.data.image_dataset({"train": (pixels, np.arange(9) % 3)}, num_classes=3, name="images")
task = loc.tasks.Streamed(loc.tasks.mlp_classification(dataset, width=4, depth=1, batch_size=4), 5)
unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(4, 12), 2)
loc.meta.meta_train(
    loc.OptaxOptimizer(optax.sgd, jnp.asarray(0.1)), loc.estimators.PES(unroll, num_pairs=2), num_steps=300,
    optimizer=optax.adam(0.05), stream=loc.data.pipeline(Images(), 4, seed=0),
    checkpoints=loc.meta.Checkpoints(sys.argv[1], {}, every=3), log_every=3, progress=None, key=jax.random.key(0),
)
"""


def newest(folder):
    return max((int(path.stem.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.slow
def test_a_run_on_a_stream_that_was_killed_ends_with_the_same_bits(tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)])

    assert start(tmp_path / "whole").wait(300) == 0
    killed, rng, kills = tmp_path / "killed", np.random.default_rng(0), []
    for _ in range(4):
        child, before, deadline = start(killed), newest(killed), time.monotonic() + 120
        while newest(killed) <= before and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        child.kill()
        assert child.wait() == -signal.SIGKILL
        kills.append(newest(killed))
    assert kills == sorted(set(kills)) and 0 < kills[0] and kills[-1] < 300
    assert start(killed).wait(300) == 0
    final = [folder / "checkpoint-00000300.safetensors" for folder in (killed, tmp_path / "whole")]
    assert_identical(*(safetensors.numpy.load_file(path) for path in final))
