"""Meta-training survives kills, full disks, damaged files and schedulers."""

import concurrent.futures
import errno
import functools
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from helpers import SGD
from meta_helpers import START, Drift, Given, assert_identical, quadratic_unroll

import lo_components as loc
from lo_components import _atomic
from lo_components._atomic import exclusive
from lo_components.estimators import PES, Difference, SignOfDifference
from lo_components.meta import (
    Checkpoints,
    RunFolder,
    _checkpoints,
    _constants,
    _loop,
    init_meta_state,
    meta_optimizer,
    meta_train,
    read_log,
)
from lo_components.meta._checkpoints import DurableRun
from lo_components.meta._constants import constants
from lo_components.optimizers import Scaled
from lo_components.parametrization import MuP
from lo_components.sharding import ParticleSharded, make_mesh
from lo_components.tasks import Quadratic
from lo_components.unroll import ConstantHorizon, TruncatedUnroll
from lo_components.weights import CheckpointError, card, load, load_arrays, save, save_arrays

pytestmark = pytest.mark.usefixtures("standard_promotion")


ESTIMATOR = PES(quadratic_unroll(steps=10, window=5), num_pairs=2)
OPTIMIZER = optax.adam(0.05)
KEY = jax.random.key(0)


def train(folder, *, num_steps=30, every=7, keep=2, callback=None):
    return meta_train(
        SGD(jnp.asarray(0.01)),
        ESTIMATOR,
        num_steps=num_steps,
        optimizer=OPTIMIZER,
        checkpoints=None if folder is None else Checkpoints(folder, {"task": "quadratic"}, every, keep),
        log_every=5,
        callback=callback,
        progress=None,
        key=KEY,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder, with all its checkpoints, and the learner of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with jax.numpy_dtype_promotion("standard"):
        return folder, train(folder, keep=9)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder."""
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def steps_in(folder):
    return [int(path.stem.removeprefix("checkpoint-")) for path in sorted(folder.glob("checkpoint-*.safetensors"))]


def expected():
    """The arrays that a checkpoint of `train` holds."""
    return jax.eval_shape(lambda: init_meta_state(SGD(jnp.asarray(0.0)), ESTIMATOR, OPTIMIZER, key=KEY))


def meta_state(step=0):
    learner = Drift(jnp.asarray([0.0, float(step)]))
    state = init_meta_state(learner, Given(learner, jnp.asarray(1.0)), optax.sgd(0.0), key=KEY)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(step, jnp.int32) if path[0].name == "step" else x, state
    )


def without_times(metadata):
    log = {name: value for name, value in metadata["log"].items() if name not in ("seconds", "row_began")}
    return {**metadata, "log": log}


def metadata_of(path):
    return load_arrays(path, meta_state())[1]


# Writing in the background.


def test_the_loop_goes_on_while_a_checkpoint_is_written(finished, tmp_path, monkeypatch):
    save, log, logged, waited, threads = save_arrays, RunFolder.log, threading.Event(), [], set()

    def slow_save(path, *args, **kwargs):
        threads.add(threading.current_thread())
        if path.name == "checkpoint-00000007.safetensors":
            waited.append(logged.wait(60))
        save(path, *args, **kwargs)

    def notice(folder, row):
        log(folder, row)
        if row["step"] == 10:
            logged.set()

    monkeypatch.setattr(_checkpoints, "save_arrays", slow_save)
    monkeypatch.setattr(RunFolder, "log", notice)
    assert_identical(train(tmp_path / "run", keep=9), finished[1])
    assert waited == [True] and len(threads) == 1 and threading.main_thread() not in threads
    # What the loop did meanwhile has not changed what was written.
    for step in steps_in(finished[0]):
        late, plain = (
            load_arrays(f / f"checkpoint-{step:08d}.safetensors", expected()) for f in (tmp_path / "run", finished[0])
        )
        assert_identical(late[0], plain[0])
        assert without_times(late[1]) == without_times(plain[1])


def test_a_second_checkpoint_waits_for_the_first(tmp_path, monkeypatch):
    save, events = save_arrays, []

    def slow_save(path, *args, **kwargs):
        events.append("begin")
        time.sleep(0.01)
        save(path, *args, **kwargs)
        events.append("end")

    monkeypatch.setattr(_checkpoints, "save_arrays", slow_save)
    with DurableRun(Checkpoints(tmp_path, {}, every=1)) as run:
        for step in range(1, 6):
            run.after_step(step, meta_state(step), jnp.asarray(math.nan), last=False)
    assert events == ["begin", "end"] * 5
    assert steps_in(tmp_path) == [4, 5]


@pytest.mark.parametrize("name", ["checkpoint-00000014", "checkpoint-00000030", "best"])
def test_what_the_writer_raises_is_raised_in_the_loop(finished, tmp_path, monkeypatch, name):
    save = save_arrays

    def full_disk(path, *args, **kwargs):
        if path.name.startswith(name):
            raise OSError(28, "No space left on device")
        save(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "save_arrays", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path)
    assert_identical(train(tmp_path), finished[1])


def test_an_error_of_the_writer_does_not_hide_one_of_the_loop(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoints, "save_arrays", full_disk)
    with pytest.raises(KeyboardInterrupt) as error:
        with DurableRun(Checkpoints(tmp_path, {}, every=1)) as run:
            run.after_step(1, meta_state(1), jnp.asarray(0.0), last=False)
            raise KeyboardInterrupt
    assert (
        "checkpoint was not written either" in error.value.__notes__[0] and "No space left" in error.value.__notes__[0]
    )


# Which checkpoints there are.


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_few_are_kept(tmp_path, finished, keep):
    assert_identical(train(tmp_path, keep=keep), finished[1])
    assert steps_in(tmp_path) == [7, 14, 21, 28, 30][-keep:]


def follow(folder, losses, *, every=2, start=0):
    """A run whose meta-steps have these losses."""
    with DurableRun(Checkpoints(folder, {}, every)) as run:
        assert run.resume(meta_state())[0].step == start
        for step, loss in enumerate(losses[start:], start + 1):
            run.after_step(step, meta_state(step), jnp.asarray(loss), last=step == len(losses))


def test_the_best_checkpoint_has_the_lowest_mean_loss_since_the_one_before(tmp_path):
    follow(tmp_path, [5.0, 3.0, 2.0, 1.0, 0.0, 9.0])
    assert metadata_of(tmp_path / "best.safetensors") == metadata_of(tmp_path / "checkpoint-00000004.safetensors")
    assert metadata_of(tmp_path / "best.safetensors") == {"step": 4, "config": {}, "meta_loss": 1.5, "since": [0.0, 0]}
    assert_identical(load_arrays(tmp_path / "best.safetensors", meta_state())[0], meta_state(4))


def test_the_best_survives_a_resume_until_there_is_a_better_one(tmp_path):
    losses = [5.0, 3.0, 2.0, 1.0, 9.0, 9.0, 1.0, 1.0]
    follow(tmp_path, losses[:4])
    follow(tmp_path, losses[:6], start=4)
    assert metadata_of(tmp_path / "best.safetensors")["step"] == 4
    follow(tmp_path, losses, start=6)
    assert metadata_of(tmp_path / "best.safetensors")["step"] == 8


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    follow(tmp_path, [math.nan, 1.0, -math.inf, 1.0, 7.0, 7.0, math.inf, 0.0])
    assert metadata_of(tmp_path / "best.safetensors")["step"] == 6
    assert metadata_of(tmp_path / "checkpoint-00000008.safetensors")["meta_loss"] is None


def test_a_run_that_starts_over_forgets_the_best(tmp_path):
    follow(tmp_path, [1.0, 1.0])
    (tmp_path / "checkpoint-00000002.safetensors").unlink()
    follow(tmp_path, [5.0, 5.0])
    assert metadata_of(tmp_path / "best.safetensors")["meta_loss"] == 5.0


def test_a_damaged_best_checkpoint_is_reported_and_set_aside(copied, finished):
    (copied / "best.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"`.*best.safetensors` is cut short.*renamed to `best.safetensors.corrupt`"):
        assert_identical(train(copied), finished[1])
    assert (copied / "best.safetensors.corrupt").read_bytes() == b"damaged"


def test_what_kills_left_behind_is_removed_and_nothing_else(copied, finished):
    # No process has such a number; the parent is one that may still be writing.
    names = [f".{name}.{pid}-2.tmp" for name, pid in (("best.safetensors", 2**30), ("log.jsonl", os.getpid()))]
    for name in [*names, f".best.safetensors.{os.getppid()}-2.tmp", ".mine.tmp", "notes.txt"]:
        (copied / name).write_bytes(b"torn")
    before = {path.name for path in copied.iterdir()}
    assert_identical(train(copied), finished[1])
    assert {path.name for path in copied.iterdir()} == before - set(names)


# Other constants.


def with_constants(
    folder, *, std=0.01, horizon=10, window=5, step_mult=1.0, shaping=None, scale=1.0, num_steps=30, wrap=lambda x: x
):
    """A run like `train`, with a constant in its learner."""
    task = Quadratic(jnp.asarray(START), parametrization=MuP(output_mult=scale))
    unroll = TruncatedUnroll(task, ConstantHorizon(horizon), window)
    pes = PES(unroll, num_pairs=2, std=std, shaping=shaping or Difference())
    learner = Scaled(SGD(jnp.asarray(0.01)), step_mult)
    checkpoints = Checkpoints(folder, {"task": "quadratic"}, every=5)
    return meta_train(
        learner,
        wrap(pes),
        num_steps=num_steps,
        optimizer=OPTIMIZER,
        checkpoints=checkpoints,
        progress=None,
        key=KEY,
    )


OTHERS = {
    "estimator/std` is 0.01 there, 0.02 here": dict(std=0.02),
    "estimator/std` is 0.01 there, test_durability.<lambda> here": dict(std=lambda windows: 0.01),
    "estimator/unroll/horizon/steps` is 10 there, 20 here": dict(horizon=20),
    "estimator/unroll/window` is 5 there, 2 here": dict(window=2),
    "estimator/shaping` is Difference there, SignOfDifference here": dict(shaping=SignOfDifference()),
    "estimator/unroll/task/parametrization/output_mult` is 1.0 there, 2.0 here": dict(scale=2.0),
    "learner/scales` is 1.0 there, 3.0 here": dict(step_mult=3.0),
    "learner/scales` is 1.0 there, Constant here": dict(step_mult=jnp.asarray(1.0)),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that is not at its end, and the learner at the end of such a run."""
    folder = tmp_path_factory.mktemp("constants") / "run"
    with jax.numpy_dtype_promotion("standard"):
        with_constants(folder, num_steps=10)
        return folder, with_constants(folder.parent / "whole")


@pytest.mark.parametrize("words", OTHERS)
def test_a_run_is_not_continued_with_other_constants(begun, words):
    folder = begun[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=re.escape(f"other constants (`{words}")):
        with_constants(folder, **OTHERS[words])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_is_continued_with_the_same_constants_on_other_devices_and_by_other_versions(begun, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    for name in ("same", "on a mesh", "new field", "version before"):
        folder = tmp_path / name
        shutil.copytree(begun[0], folder)
        stamp = folder / "constants.json"
        known = json.loads(stamp.read_text())
        assert known["estimator/std"] == known["learner/optimizer/hyperparameters/learning_rate"] == "0.01"
        if name == "new field":
            stamp.write_text(json.dumps({n: value for n, value in known.items() if n != "estimator/std"}))
        if name == "version before":
            stamp.unlink()
        wrap = (lambda pes: ParticleSharded(pes, mesh)) if name == "on a mesh" else (lambda pes: pes)
        assert_identical(with_constants(folder, wrap=wrap), begun[1])
        assert stamp.exists()


def test_a_folder_without_checkpoints_takes_other_constants(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors"))
    with_constants(tmp_path / "run", std=0.02, num_steps=5)
    assert json.loads((tmp_path / "run" / "constants.json").read_text())["estimator/std"] == "0.02"


def test_damaged_constants_are_refused(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    (tmp_path / "run" / "constants.json").write_text("[")
    with pytest.raises(FileExistsError, match="constants.json` is corrupt. Delete it if"):
        with_constants(tmp_path / "run")


def test_long_sequences_and_arrays_are_hashed():
    table = np.ones((2, 3), np.float32)
    named = constants(SGD(0.1), {"names": ("a", "b"), "pieces": list(range(1000)), "table": table, "key": KEY})
    assert named == {
        "learner": "OptaxOptimizer",
        "learner/transformation": "optax.sgd",
        "learner/update_rule": "None",
        "learner/hyperparameters": "keys learning_rate",
        "learner/hyperparameters/learning_rate": "0.1",
        "estimator": "keys names, pieces, table, key",
        "estimator/names": "2 entries",
        "estimator/names/0": "a",
        "estimator/names/1": "b",
        "estimator/pieces": "1000 entries, 8157cd68feedcc8d",
        "estimator/table": "float32[2, 3]",
        "estimator/table (values)": "8092a638f3abb432",
        "estimator/key": "[0 0]",
    }


# The identity of a run.


def identified(folder, *, rate=0.01, seed=0, optimizer=None, peak=0.01, data=1.0, schedule=None, num_steps=4):
    """A run with a schedule of its own, data in its task, and a meta-optimizer."""
    task = Quadratic(data * jnp.asarray(START))
    unroll = TruncatedUnroll(task, ConstantHorizon(10), 5)
    pes = PES(unroll, num_pairs=2, std=schedule or (lambda windows: peak * 0.5 ** (windows / 100.0)))
    return meta_train(
        SGD(jnp.asarray(rate)),
        pes,
        num_steps=num_steps,
        optimizer=optimizer or optax.adamw(1e-3),
        checkpoints=Checkpoints(folder, {"task": "quadratic"}, every=2),
        progress=None,
        key=jax.random.key(seed),
    )


def decaying(rate):
    return optax.exponential_decay(rate, 100, 0.5)


def half(windows, start=0.01):
    return start * 0.5 ** (windows / 100.0)


OTHER_RUNS = {
    "`key` is [0 0] there, [0 7] here": (dict(seed=7), {}),
    "`learner/hyperparameters/learning_rate` is 0.01 there, 0.02 here": (dict(rate=0.02), {}),
    "/update/step_size` is -0.001 there, -0.002 here": (dict(optimizer=optax.adamw(2e-3)), {}),
    "/weight_decay` is 0.0001 there, 0.1 here": (dict(optimizer=optax.adamw(1e-3, weight_decay=0.1)), {}),
    "/max_norm` is 1 there, 2 here": (
        dict(optimizer=meta_optimizer(4, max_norm=2.0)),
        dict(optimizer=meta_optimizer(4)),
    ),
    "/every_k_schedule` is 2 there, 3 here": (
        dict(optimizer=optax.MultiSteps(optax.sgd(0.1), 3)),
        dict(optimizer=optax.MultiSteps(optax.sgd(0.1), 2)),
    ),
    "numeric_hps/learning_rate` is 0.1 there, 0.2 here": (
        dict(optimizer=optax.inject_hyperparams(optax.sgd)(0.2)),
        dict(optimizer=optax.inject_hyperparams(optax.sgd)(0.1)),
    ),
    "`estimator/unroll/task/start (values": (dict(data=2.0), {}),
    "`estimator/std/peak` is 0.01 there, 0.02 here": (dict(peak=0.02), {}),
    "`estimator/std/init_value` is 0.01 there, 0.02 here": (
        dict(schedule=decaying(0.02)),
        dict(schedule=decaying(0.01)),
    ),
    "`estimator/std/start` is 0.01 there, 0.02 here": (
        dict(schedule=functools.partial(half, start=0.02)),
        dict(schedule=functools.partial(half, start=0.01)),
    ),
    ".` is 0.01 0.5 there, 0.02 0.5 here": (
        dict(schedule=lambda windows: 0.02 * 0.5**windows),
        dict(schedule=lambda windows: 0.01 * 0.5**windows),
    ),
}


def _loss_times(factor):
    """A task of a user whose loss closes over a number."""

    class Task(loc.tasks.AbstractTaskWrapper):
        task: loc.AbstractTask

        def loss(self, params, batch, *, key):
            return factor * self.task.loss(params, batch, key=key)

    return Task(loc.tasks.Quadratic(jnp.ones(3)))


TABLE = np.ones(3, np.float32)


class _ReadsTheModule(loc.tasks.AbstractTaskWrapper):
    task: loc.AbstractTask

    def loss(self, params, batch, *, key):
        return jnp.sum(TABLE * params**2)


class _WithSlots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __call__(self, windows):
        return self.value


def _estimator(task, **options):
    return loc.estimators.PES(loc.unroll.TruncatedUnroll(task, 4, 2), num_pairs=1, **options)


def test_what_the_methods_of_a_users_class_depend_on_is_compared(monkeypatch):
    def found(estimator):
        return constants(SGD(jnp.asarray(0.1)), estimator)

    def differing(a, b):
        return {name.rpartition("/")[2] for name in a if a[name] != b[name]}

    assert differing(found(_estimator(_loss_times(1.0))), found(_estimator(_loss_times(2.0)))) == {"factor"}
    assert not differing(found(_estimator(_loss_times(1.0))), found(_estimator(_loss_times(1.0))))
    wrapped = _ReadsTheModule(loc.tasks.Quadratic(jnp.ones(3)))
    before = found(_estimator(wrapped))
    monkeypatch.setitem(globals(), "TABLE", np.full(3, 2.0, np.float32))
    assert differing(before, found(_estimator(wrapped))) == {"TABLE (values)"}
    schedules = [_estimator(_loss_times(1.0), std=_WithSlots(value)) for value in (0.1, 0.2)]
    assert differing(*map(found, schedules)) == {"value"}


@pytest.mark.parametrize("words", OTHER_RUNS)
def test_a_folder_of_another_run_is_refused_by_name(tmp_path, words):
    other, first = OTHER_RUNS[words]
    if words.startswith("."):  # the version of Python is in the name
        words = f"code, Python {sys.version_info.major}.{sys.version_info.minor}{words[1:]}"
    identified(tmp_path, **first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        FileExistsError, match=f"with other constants.*{re.escape(words)}.*if it is the same"
    ) as refusal:
        identified(tmp_path, **other, num_steps=6)
    assert len(str(refusal.value)) < 600 + len(str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "constants.json").unlink()
    identified(tmp_path, **other, num_steps=6)


def test_the_initial_theta_is_compared_by_hash_on_one_platform(tmp_path):
    def found(seed):
        return constants(loc.recipes.lolv2(hidden_size=4, key=jax.random.key(seed)), {}, None, key=KEY)

    first, second = found(0), found(1)
    assert set(first) == set(second) and found(0) == first
    differing = [name for name in first if first[name] != second[name]]
    where = f" (values, cpu, jax {jax.__version__})"
    assert differing and all(name.startswith("learner/pipeline/head/") and name.endswith(where) for name in differing)


GLOBAL = 0.01


def test_a_number_of_the_module_that_a_schedule_reads_counts(monkeypatch):
    def found():
        return constants(SGD(0.1), {"std": lambda windows: GLOBAL * windows})["estimator/std/GLOBAL"]

    assert found() == "0.01"
    monkeypatch.setattr(sys.modules[__name__], "GLOBAL", 0.02)
    assert found() == "0.02"


def test_functions_that_contain_themselves_are_described():
    def schedule(windows):
        return schedule(windows - 1) if windows > 0 else 0.5

    found = constants(SGD(0.1), {"std": schedule, "bound": "word".upper, "all": {"a", "b"}, "made": SGD})
    assert found["estimator/std"].endswith("schedule") and found["estimator/all"] == "a set"
    assert not any("0x" in text for text in found.values())  # no addresses


def test_training_longer_is_refused_only_if_the_schedule_would_be_another(tmp_path):
    identified(tmp_path / "fixed")
    identified(tmp_path / "fixed", num_steps=8)

    def default(num_steps, optimizer=None):
        options = dict(checkpoints=Checkpoints(tmp_path / "default", {}), optimizer=optimizer, progress=None, key=KEY)
        return meta_train(SGD(jnp.asarray(0.01)), ESTIMATOR, num_steps=num_steps, **options)

    default(6)
    with pytest.raises(FileExistsError, match="train longer.` is 6 there, 8 here"):
        default(8)
    default(8, meta_optimizer(6))  # goes on with the last learning rate


SAME = """
import sys
import jax, jax.numpy as jnp, optax
import lo_components as loc

PEAK = 0.01
names = {"one", "two", "three"}
key = jax.random.key(0)
task = loc.tasks.mlp_classification(loc.data.digits(), width=4, depth=1, batch_size=8)
learner = loc.recipes.lolv2(hidden_size=4, hidden_layers=1, key=key)
pes = loc.estimators.PES(loc.unroll.TruncatedUnroll(task, 4, 2), num_pairs=1, std=lambda t: (len(names) > 0) * PEAK)
loc.meta.meta_train(
    learner, pes, num_steps=int(sys.argv[2]), optimizer=optax.adamw(optax.cosine_decay_schedule(1e-3, 100)),
    checkpoints=loc.meta.Checkpoints(sys.argv[1], {}), progress=None, key=key,
)
"""


def test_the_same_script_continues_its_run_in_another_process(tmp_path):
    for steps, seed in ((2, "1"), (4, "2")):
        command = [sys.executable, "-c", SAME, str(tmp_path / "run"), str(steps)]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": seed})
    assert steps_in(tmp_path / "run") == [2, 4]


def test_large_arrays_are_hashed_in_part_and_once(monkeypatch):
    monkeypatch.setattr(_constants, "_HASHED_BYTES", 2**16)
    monkeypatch.setattr(_constants, "_PIECES", 16)
    digest, hashed = _constants._digest, []
    monkeypatch.setattr(_constants, "_digest", lambda *parts: hashed.append(parts) or digest(*parts))
    data = np.arange(10**6)
    found = constants(SGD(0.1), {"data": data, "build": lambda: data})
    assert found["estimator/data (values)"] == found["estimator/build/data (values)"]
    ((*pieces,),) = hashed
    assert sum(piece.nbytes for piece in pieces) == 2**16 and pieces[-1][-1] == data.view(np.uint8)[-1]


# Two processes in one folder.


def test_a_second_run_in_a_folder_is_refused_at_once(finished, tmp_path):
    def second(step, learner):
        if step == 10:
            before = (tmp_path / "constants.json").stat()
            with pytest.raises(FileExistsError, match=rf"`{tmp_path}` is in use by process {os.getpid()} on .*; wait"):
                train(tmp_path)
            assert os.path.samestat((tmp_path / "constants.json").stat(), before)
            # Reading takes no lock.
            assert read_log(tmp_path) and RunFolder.open(tmp_path, {"task": "quadratic"}).path == tmp_path

    assert_identical(train(tmp_path, callback=second), finished[1])
    assert not (tmp_path / ".lock").exists()
    train(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from lo_components.meta import RunFolder
with RunFolder.open(sys.argv[1], {"task": "quadratic"}).locked():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_vanishes_with_its_process(finished, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(FileExistsError, match=f"in use by process {child.pid} on "):
            train(tmp_path)
    finally:
        child.kill()
        child.communicate()
    assert (tmp_path / ".lock").exists()
    assert_identical(train(tmp_path), finished[1])
    assert not (tmp_path / ".lock").exists()


def test_of_many_threads_one_has_the_lock(tmp_path):
    barrier, holders, most, refused = threading.Barrier(8, timeout=60), [], [], []

    def attempt(_):
        barrier.wait()
        try:
            with exclusive(tmp_path / ".lock"):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.0005)
                holders.pop()
        except BlockingIOError:
            refused.append(1)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            list(threads.map(attempt, range(8)))
    assert set(most) == {1} and len(most) >= 50 and refused


def test_a_lock_whose_file_vanishes_while_it_is_checked_is_taken_again(tmp_path, monkeypatch):
    def vanishes(*_):
        monkeypatch.undo()
        raise FileNotFoundError

    monkeypatch.setattr(os.path, "samestat", vanishes)
    with exclusive(tmp_path / ".lock"):
        assert (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_has_none(finished, tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_atomic, "_lock", unsupported)
    assert_identical(train(tmp_path), finished[1])


# Paths and torn lines.


def test_a_tilde_is_the_home_folder_in_every_path(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert_identical(train("~/run"), finished[1])
    assert [row["step"] for row in read_log("~/run")] == [5, 10, 15, 20, 25, 30]
    assert_identical(load("~/run/best.safetensors"), load(tmp_path / "run" / "best.safetensors"))
    save_arrays("~/a.safetensors", TREE, metadata={})
    assert_identical(load_arrays("~/a.safetensors", TREE)[0], TREE)
    save("~/b.safetensors", finished[1], card={"of": "me"})
    assert card("~/b.safetensors") == {"of": "me"}
    with pytest.raises(FileNotFoundError, match=f"There is no folder `{tmp_path}/data`"):
        loc.data.fashion_mnist("~/data")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.safetensors", "b.safetensors"}


def test_a_torn_last_line_of_the_log_is_left_out(copied):
    rows = read_log(copied)
    with (copied / "log.jsonl").open("a") as file:
        file.write('{"step": 35, "lo')
    assert read_log(copied) == rows
    lines = (copied / "log.jsonl").read_text().splitlines()
    (copied / "log.jsonl").write_text("\n".join(["{torn", *lines]))
    with pytest.raises(ValueError, match="Line 1 of `.*log.jsonl` is corrupt; delete that line"):
        read_log(copied)


# Damaged checkpoints.


def foreign(path):
    save_arrays(path, {"w": jnp.ones(3)})


def of_another_run(path):
    state, metadata = load_arrays(path, expected())
    save_arrays(path, state, metadata={**metadata, "config": {"task": "other"}})


DAMAGES = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut short, corrupt"),
    "empty": (lambda path: path.write_bytes(b""), "cut short, corrupt"),
    "a flipped bit": (lambda path: path.write_bytes(flipped(path.read_bytes(), -10, 1)), "checksum does not match"),
    "foreign": (foreign, "belongs to something else"),
    "of another configuration": (of_another_run, "another configuration"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(copied, finished, damage):
    function, reason = DAMAGES[damage]
    newest = copied / "checkpoint-00000030.safetensors"
    function(newest)
    damaged = newest.read_bytes()
    with pytest.warns(UserWarning, match=f"`{newest}` .*{reason}.*continues from `checkpoint-00000028.safetensors`.*"):
        assert_identical(train(copied), finished[1])
    assert (copied / "checkpoint-00000030.safetensors.corrupt").read_bytes() == damaged
    assert [row["step"] for row in read_log(copied)] == [5, 10, 15, 20, 25, 30]
    assert_identical(train(copied), finished[1])  # without a warning, which would be an error


def test_several_damaged_checkpoints_are_set_aside(copied, finished):
    for step in (30, 28, 21):
        (copied / f"checkpoint-{step:08d}.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="continues from `checkpoint-00000014.safetensors`") as warnings:
        assert_identical(train(copied), finished[1])
    assert len(warnings) == 3 and len(list(copied.glob("*.corrupt"))) == 3


def test_checkpoints_that_are_all_damaged_are_refused_and_kept(copied):
    for step in (7, 14, 21, 28, 30):
        (copied / f"checkpoint-{step:08d}.safetensors").write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no usable checkpoint.*delete these files to start the run over"):
            train(copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


# Signals.


def signal_at(monkeypatch, step, number=signal.SIGTERM, times=1):
    """Send this process a signal while the log's row of `step` is written."""
    log = RunFolder.log

    def wrapper(folder, row):
        log(folder, row)
        if row["step"] == step:
            for _ in range(times):
                signal.raise_signal(number)

    monkeypatch.setattr(RunFolder, "log", wrapper)


def test_sigterm_writes_a_checkpoint_and_exits_so_that_the_run_can_continue(finished, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at(patch, 10)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, keep=9)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is handler
    assert f"Stopped by SIGTERM after meta-step 10. Its checkpoint is in `{tmp_path}`" in capsys.readouterr().err
    assert steps_in(tmp_path) == [7, 10]
    assert_identical(train(tmp_path, keep=9), finished[1])
    assert [row["step"] for row in read_log(tmp_path)] == [5, 10, 15, 20, 25, 30]
    # The mean losses, and with them the best, are those of the run that was not stopped.
    for name in ("checkpoint-00000014", "checkpoint-00000030", "best"):
        stopped, whole = (load_arrays(f / f"{name}.safetensors", expected())[1] for f in (tmp_path, finished[0]))
        assert without_times(stopped) == without_times(whole)


def test_sigterm_in_the_last_step_leaves_a_finished_run(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 30)
        with pytest.raises(SystemExit):
            train(tmp_path)
    monkeypatch.setattr(_loop, "_step", None)
    assert_identical(train(tmp_path), finished[1])


@pytest.fixture
def ctrl_c_interrupts():
    """Python's own handler, also where the tests run in the background of a shell, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_writes_a_checkpoint_and_raises(finished, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        signal_at(patch, 10, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, keep=9)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Stopped by SIGINT after meta-step 10. Its checkpoint is in" in capsys.readouterr().err
    assert steps_in(tmp_path) == [7, 10]
    assert_identical(train(tmp_path, keep=9), finished[1])


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_a_second_ctrl_c_stops_at_once(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 10, signal.SIGINT, times=2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, keep=9)
    assert steps_in(tmp_path) == [7]
    assert_identical(train(tmp_path, keep=9), finished[1])


def test_who_ignores_ctrl_c_goes_on_ignoring_it(finished, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, 10, signal.SIGINT)
        assert_identical(train(tmp_path), finished[1])
    finally:
        signal.signal(signal.SIGINT, before)


def handlers_while_training(monkeypatch, folder):
    step, handlers = _loop._step, set()

    def wrapper(*args):
        handlers.add(signal.getsignal(signal.SIGTERM))
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_loop, "_step", wrapper)
        train(folder, num_steps=3)
    return handlers


def test_sigterm_is_left_alone_without_checkpoints_and_in_other_threads(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    assert handlers_while_training(monkeypatch, None) == {before}
    assert before not in handlers_while_training(monkeypatch, tmp_path / "a")
    found = []

    def in_a_thread():
        with jax.numpy_dtype_promotion("standard"):
            found.append(handlers_while_training(monkeypatch, tmp_path / "b"))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert found == [{before}] and steps_in(tmp_path / "b") == [3]


# Files: every byte counts.


def flipped(data, position, mask):
    data = bytearray(data)
    data[position] ^= mask
    return bytes(data)


TREE = {"w": jax.random.normal(jax.random.key(1), (3000,)), "k": jax.random.key(3), "n": np.arange(3, dtype=np.int8)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save_arrays(path, TREE, metadata={"step": 3, "zeros": 64 * "0", "config": {'"file_sha256":"': 'ä"'}})
    assert_identical(load_arrays(path, TREE)[0], TREE)
    return path.read_bytes()


def refused(path, data, like=None):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"`{path}` "):
        load_arrays(path, TREE if like is None else like)


def test_a_flipped_byte_is_detected_in_every_region(whole, tmp_path):
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    spaces = [i for i in range(8, header) if whole[i] == ord(" ")]
    assert spaces  # padding, where a tab would be JSON as well
    positions = [*range(8), *range(8, header, 4), *spaces, *rng.integers(header, len(whole), 80), len(whole) - 1]
    assert len(positions) > 200
    for position in positions:
        refused(tmp_path / "a.safetensors", flipped(whole, position, int(rng.integers(1, 256))))
        refused(tmp_path / "a.safetensors", flipped(whole, position, ord(" ") ^ ord("\t")))


def test_larger_damage_is_detected(whole, tmp_path):
    path, page = tmp_path / "a.safetensors", 4096
    zeroed = whole[:page] + bytes(page) + whole[2 * page :]
    swapped = whole[:page] + whole[2 * page : 2 * page + 512] + whole[page + 512 : 2 * page]
    swapped += whole[page : page + 512] + whole[2 * page + 512 :]
    assert len(zeroed) == len(swapped) == len(whole) and sorted(swapped) == sorted(whole)
    for data in (zeroed, swapped, whole + b"\0", whole + whole, whole[:-1], whole[:page], whole[1:], bytes(len(whole))):
        refused(path, data)


def signed(header, data=bytes(8), length=None):
    """A file with a digest that is right, whatever its header."""
    blank = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"file_sha256":"' + 64 * b"0", b'"file_sha256":"' + digest)


META = b'"__metadata__":{"metadata":"{}","file_sha256":"' + 64 * b"0" + b'"}'
X = b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def test_the_files_built_here_are_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(signed(b"{%b,%b}" % (META, X)))
    assert_identical(load_arrays(tmp_path / "a.safetensors", {"x": jnp.ones(2)})[0], {"x": jnp.zeros(2)})


HOSTILE = {
    "a name twice": signed(b"{%b,%b,%b}" % (META, X, X)),
    "metadata twice": signed(b"{%b,%b,%b}" % (META, META, X)),
    "overlapping arrays": signed(b"{%b,%b,%b}" % (META, X, X.replace(b"x", b"y"))),
    "a hole": signed(b"{%b,%b}" % (META, X.replace(b"[0,8]", b"[4,12]")), bytes(12)),
    "offsets beyond the end": signed(b"{%b,%b}" % (META, X.replace(b"[0,8]", b"[0,800]"))),
    "offsets in the wrong order": signed(b"{%b,%b}" % (META, X.replace(b"[0,8]", b"[8,0]"))),
    "a negative size": signed(b"{%b,%b}" % (META, X.replace(b"[2]", b"[-2]"))),
    "a huge size": signed(b"{%b,%b}" % (META, X.replace(b"[2]", b"[4611686018427387904]"))),
    "a huge empty array": signed(b"{%b,%b}" % (META, X.replace(b"[2]", b"[9223372036854775807,0]")), b""),
    "a huge empty array at its place": signed(
        b"{%b,%b}" % (META, X.replace(b"[2]", b"[9223372036854775807,0]").replace(b"[0,8]", b"[0,0]")), b""
    ),
    "a hundred dimensions": signed(b"{%b,%b}" % (META, X.replace(b"[2]", b"[2" + 99 * b",1" + b"]"))),
    "a dtype unknown to NumPy": signed(b"{%b,%b}" % (META, X.replace(b"F32", b"F8_E8M0").replace(b"[2]", b"[8]"))),
    "a dtype that does not exist": signed(b"{%b,%b}" % (META, X.replace(b"F32", b"object"))),
    "a huge header": signed(b"{%b,%b}" % (META, X), length=2**64 - 1),
    "a header longer than the file": signed(b"{%b,%b}" % (META, X), length=2**40),
    "no header": bytes(8),
    "a short length": b"\1\0\0",
    "deep nesting": signed(b"[" * 200_000),
    "deep metadata": signed(b"{%b,%b}" % (META.replace(b"{}", b"[" * 200_000), X)),
    "metadata that are a list": signed(b"{%b,%b}" % (META.replace(b"{}", b"[]"), X)),
    "metadata that are not JSON": signed(b"{%b,%b}" % (META.replace(b"{}", b"__import__('os')"), X)),
    "metadata that are no text": signed(b"{%b,%b}" % (META.replace(b'"{}"', b"{}"), X)),
    "no metadata": signed(b"{%b}" % X),
    "a list for a header": signed(b"[]"),
    "another encoding": signed("{}".encode("utf-16")),
    "a digit too many": signed(b"{%b,%b}" % (META, X.replace(b'"F32"', b'"F32","n":' + b"9" * 5000))),
    "the right digest elsewhere": signed(b'{"file_sha256":"%b",%b,%b}' % (64 * b"0", META, X)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, case):
    refused(tmp_path / "a.safetensors", HOSTILE[case], {"x": jnp.ones(2)})


def first_format(tree, metadata):
    """A file as version 0.1.0 wrote it."""
    arrays = {
        name: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for name, x in tree.items()
    }
    text = json.dumps(metadata, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name}|{arrays[name].dtype.str}|{arrays[name].shape}|".encode())
        digest.update(arrays[name].tobytes())
    return safetensors.numpy.save(arrays, metadata={"metadata": text, "sha256": digest.hexdigest()})


def test_files_of_the_first_version_are_read_and_checked(tmp_path):
    path, data = tmp_path / "a.safetensors", first_format(TREE, {"step": 3})
    path.write_bytes(data)
    loaded, metadata = load_arrays(path, TREE)
    assert_identical(loaded, TREE)
    assert metadata == {"step": 3}
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 100):
        refused(path, flipped(data, position, 0x01))


# Processes that are killed.

CHILD = """
import sys
import jax, jax.numpy as jnp, optax
from lo_components.estimators import PES
from lo_components.meta import Checkpoints, meta_train
from lo_components.optimizers import OptaxOptimizer
from lo_components.tasks import Quadratic
from lo_components.unroll import ConstantHorizon, TruncatedUnroll

task = Quadratic(jnp.linspace(-0.01, 0.01, 100_000))
meta_train(
    OptaxOptimizer(optax.sgd, jnp.asarray(0.01)),
    PES(TruncatedUnroll(task, ConstantHorizon(10), 5), num_pairs=2),
    num_steps=int(sys.argv[2]),
    optimizer=optax.adam(1e-3),
    checkpoints=Checkpoints(sys.argv[1], {}, every=1),
    log_every=4,
    progress=None,
    key=jax.random.key(0),
)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a run as a process of its own; all of them share what they compile."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    children = []

    def function(folder, num_steps):
        command = [sys.executable, "-c", CHILD, str(folder), str(num_steps)]
        children.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **cache}))
        return children[-1]

    yield function
    for child in children:
        child.kill()
        child.communicate()


def finish(child):
    error = child.communicate(timeout=300)[1]
    assert child.returncode == 0, error


def newest(folder):
    return max(steps_in(folder), default=0) if folder.exists() else 0


def wait_for_step(child, folder, step):
    deadline = time.monotonic() + 300
    while newest(folder) < step:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate(timeout=1)
        time.sleep(0.001)


def final_arrays(folder):
    """Every array of the newest checkpoint, theta among them, and what it says of itself."""
    data = safetensors.numpy.load_file(folder / f"checkpoint-{newest(folder):08d}.safetensors")
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in data.items()}


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path, start, capsys):
    num_kills, num_steps, rng = 20, 200, np.random.default_rng(0)
    killed, whole, began = tmp_path / "killed", tmp_path / "whole", time.monotonic()
    finish(start(whole, num_steps))
    whole_seconds, while_writing, kills = time.monotonic() - began, 0, []
    for _ in range(num_kills):
        child = start(killed, num_steps)
        wait_for_step(child, killed, newest(killed) + int(rng.integers(1, 9)))
        time.sleep(rng.uniform(0.0, 0.05))
        child.kill()
        assert child.wait() == -signal.SIGKILL
        while_writing += bool(list(killed.glob(".*.safetensors.*.tmp")))
        kills.append(newest(killed))
    finish(start(killed, num_steps))
    with capsys.disabled():
        print(
            f"\n{num_kills} kills, {while_writing} while a checkpoint was written, at steps {kills}; "
            f"{time.monotonic() - began:.0f} s, of which {whole_seconds:.0f} s uninterrupted"
        )
    assert while_writing > 0 and newest(killed) == newest(whole) == num_steps
    assert final_arrays(killed) == final_arrays(whole)
    assert "learner/hyperparameters/learning_rate" in final_arrays(whole)
    assert [row["step"] for row in read_log(killed)] == list(range(4, num_steps + 1, 4))
    assert not list(killed.glob(".*")) and not list(killed.glob("*.corrupt"))


@pytest.mark.slow
def test_a_process_that_gets_sigterm_exits_with_143_and_continues(tmp_path, start):
    folder, num_steps = tmp_path / "run", 100
    child = start(folder, num_steps)
    wait_for_step(child, folder, 10)
    child.terminate()
    error = child.communicate(timeout=60)[1]
    assert child.returncode == 143 and f"after meta-step {newest(folder)}. Its checkpoint is in `{folder}`" in error
    assert newest(folder) < num_steps
    finish(start(folder, num_steps))
    finish(start(tmp_path / "whole", num_steps))
    assert final_arrays(folder) == final_arrays(tmp_path / "whole")
