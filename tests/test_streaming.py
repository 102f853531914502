"""Batches from a stream, in meta-training and in evaluation."""

import math
from contextlib import closing
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, Adam
from meta_helpers import Counting, HashableList, assert_identical, toy_images, toy_task

from lo_components import meta
from lo_components.aggregators import Mean
from lo_components.data import pipeline, windows
from lo_components.estimators import PES, Mixture
from lo_components.meta import evaluate
from lo_components.parametrization import SP, AbstractParametrization
from lo_components.tasks import (
    AbstractTask,
    ReducedBatch,
    Streamed,
    streamed_tasks,
    with_window,
)
from lo_components.unroll import LocalRound, TruncatedUnroll

pytest.importorskip("grain")
pytestmark = pytest.mark.usefixtures("standard_promotion", "quick_compilation")

KEY = jax.random.key(3)


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


def window(task=None, count=3):
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
    task, streamed = toy_task(), Streamed(toy_task(), 3)
    params = task.init(key=KEY)
    assert_identical(streamed.init(key=KEY), params)
    assert (streamed.max_loss, streamed.parametrization) == (task.max_loss, task.parametrization)
    assert streamed.widths == task.widths
    assert_identical(streamed.metrics(params, split="test", key=KEY), task.metrics(params, split="test", key=KEY))
    batch = task.batch(key=KEY)
    assert_identical(streamed.loss(params, batch, key=KEY), task.loss(params, batch, key=KEY))


def test_a_streamed_task_without_a_window_is_refused():
    streamed = Streamed(toy_task(), 3)
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
        Streamed(toy_task(), 0)


def test_a_window_is_put_into_every_streamed_task_of_a_tree():
    tasks = [Streamed(toy_task(width=width), 3) for width in (4, 8)]
    unrolls = [TruncatedUnroll(task, 4, 2) for task in (tasks[0], ReducedBatch(tasks[1]), toy_task())]
    estimator = Mixture([PES(unroll, num_pairs=1) for unroll in unrolls])
    assert streamed_tasks(estimator) == tasks
    filled = with_window(estimator, window())
    assert jax.tree.structure(with_window(filled, None)) == jax.tree.structure(estimator)
    for task in streamed_tasks(filled):
        assert_identical(task.batches, jax.tree.map(jnp.asarray, window()))
    assert_identical(filled.estimators[2], estimator.estimators[2])


@pytest.mark.parametrize("filled", [False, True])
def test_other_windows_are_refused(filled):
    task = Streamed(toy_task(), 3)
    task = with_window(task, window()) if filled else task
    images, labels = window()
    for batches, words in (
        (window(count=4), r"`0` is float32\[4, 8, 2\], expected float32\[3, 8, 2\]"),
        ((images[:, :4], labels), r"`0` is float32\[3, 4, 2\], expected float32\[3, 8, 2\]"),
        ((images.astype(np.uint8), labels), r"`0` is uint8\[3, 8, 2\], expected float32\[3, 8, 2\]"),
        ((images, labels.astype(np.int16)), r"`1` is int16\[3, 8\], expected int32\[3, 8\]"),
        (images, "`0` is missing, expected float32"),
        ({"0": images, "1": labels}, "it is a dict of another structure than expected"),
        ((images, labels, labels), r"`2` is int32\[3, 8\], expected no such leaf"),
    ):
        with pytest.raises(ValueError, match=f"`batches` must be 3 stacked batches like .*{words}") as error:
            with_window(task, batches)
        assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="`tree` has no `lo_components.tasks.Streamed`"):
        with_window(toy_task(), window())


def test_each_worker_chooses_its_own_batch():
    task = with_window(Streamed(Recording(), 50), np.arange(50, dtype=np.float32)[:, None])
    losses, _ = LocalRound(8, 3, SGD(0.1)).local(task, jnp.zeros(3), *LocalRound(8, 3).workers(key=KEY))
    assert len(set(losses.tolist())) > 4


def test_new_windows_do_not_compile_the_meta_step_again():
    traces, learner = [], Counting(jnp.asarray(0.1), HashableList())
    estimator, optimizer = PES(TruncatedUnroll(Streamed(toy_task(), 3), 4, 2), num_pairs=1), optax.sgd(0.1)
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
                Adam(0.1), Streamed(toy_task(), size), num_steps=11, num_seeds=3, splits=("train", "test"),
                metrics_every=4, stream=batches, key=KEY, **options,
            )  # fmt: skip

    expected = evaluated(4)
    assert expected.metric_steps.tolist() == [4, 8, 11]
    for size in (1, 5, 20):
        assert_identical(evaluated(size), expected)
    assert_identical(evaluated(5, seeds_at_once=2), evaluated(7, seeds_at_once=2))


def test_an_evaluation_is_training_on_the_batches_of_the_stream():
    task = toy_task()
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
            evaluate(learner, Streamed(toy_task(), 4), num_steps=steps, stream=batches, key=KEY)
        traces.append(len(learner.traces))
    assert traces[0] == traces[1] == traces[2] > 0


def test_streams_that_cannot_be_evaluated_are_refused():
    task, options = Streamed(toy_task(), 2), dict(num_steps=6, key=KEY)
    once = stream(repeat=False)
    with pytest.raises(ValueError, match="`stream` ended within window 2 of 2 batches; pass a"):
        evaluate(SGD(0.1), task, stream=once, **options)
    assert once.state()["batches"] == 0
    with pytest.raises(ValueError, match=r"`stream` needs a task .*: wrap the task, `lo_components.tasks.Streamed\("):
        evaluate(SGD(0.1), toy_task(), stream=once, **options)
    with pytest.raises(ValueError, match="`batches` must be 2 stacked batches like those of ImageClassification: `0`"):
        evaluate(SGD(0.1), task, stream=numbers(), **options)
    with pytest.raises(TypeError, match="`splits` needs a task with metrics, but Recording is not an"):
        evaluate(SGD(0.1), Streamed(Recording(), 2), stream=numbers(), splits=("test",), **options)
    with pytest.raises(TypeError, match="`stream` is read between compiled calls, so it cannot be used inside `sweep`"):
        meta.sweep(lambda rate: evaluate(SGD(rate), task, stream=once, **options), jnp.ones(2))
