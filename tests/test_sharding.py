"""Meta-training on eight virtual devices, and in two processes; `sharded_run.py` has what runs there."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

SCRIPT = Path(__file__).parent / "sharded_run.py"
PAIRS = 56


@pytest.fixture(scope="module")
def runs():
    result = subprocess.run([sys.executable, SCRIPT, "meshes"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_rounding(actual, expected):
    """Equal up to the order of summation. It was measured as 1.5e-6 of an array's largest element."""
    for a, b in zip(actual, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.max(np.abs(b)))


CASES = [("PES", "2"), ("PES", "4"), ("PES", "8"), ("PES", "batch"), ("PES", "fsdp"), ("TruncatedES", "8")]


@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_estimates_and_theta_do_not_depend_on_the_mesh(runs, kind, mesh):
    for actual, expected in zip(runs[kind][mesh]["history"], runs[kind]["plain"]["history"], strict=True):
        assert_rounding(actual, expected)


@pytest.mark.parametrize(("kind", "mesh"), [c for c in CASES if c[1].isdigit()])
def test_nothing_is_communicated_but_sums_of_the_size_of_theta(runs, kind, mesh):
    found = runs[kind][mesh]["collectives"]
    assert {c["kind"] for c in found} == {"all-reduce"} and len(found) <= 2
    # A missing sum over devices would show in the values; here it is the gradient and at most 64 scalars.
    theta_bytes = runs[kind][mesh]["theta_bytes"]
    assert theta_bytes <= sum(c["bytes"] for c in found) <= theta_bytes + 64 * 4
    assert runs[kind]["plain"]["collectives"] == []


@pytest.mark.parametrize("kind", ["PES", "TruncatedES"])
def test_no_device_computes_what_belongs_to_all_pairs(runs, kind):
    """Noise, initial parameters and batches of all pairs would be arrays with the number of pairs in front."""
    assert PAIRS in runs[kind]["plain"]["leading_sizes"]
    assert PAIRS not in runs[kind]["8"]["leading_sizes"]
    assert PAIRS // 8 in runs[kind]["8"]["leading_sizes"]


def test_particles_are_spread_and_the_rest_is_everywhere(runs):
    for name, spec in runs["PES"]["8"]["specs"].items():
        scalar = name in (".step", ".key", ".estimator_state.windows")
        expected = "P('particles',)" if name.startswith(".estimator_state") and not scalar else "P()"
        assert spec == expected, name


def test_large_arrays_of_inner_training_are_spread_over_fsdp(runs):
    specs = runs["PES"]["fsdp"]["specs"]
    spread = {name: spec for name, spec in specs.items() if "fsdp" in spec}
    assert spread == {
        ".estimator_state.inner.train.params": "P('particles', None, 'fsdp')",
        ".estimator_state.inner.train.learner_state": "P('particles', None, None, 'fsdp')",
    }


def test_initial_state_is_computed_where_it_lies(runs):
    assert_rounding(runs["init"]["values"], runs["init"]["plain"])
    assert runs["init"]["collectives"] == []
    assert runs["init"]["specs"] == runs["TruncatedES"]["8"]["specs"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("devices", "`workers` x `batch` x `fsdp` is 3 x 1 x 1 x 1 = 3, but there are 8 devices; choose sizes"),
        ("rest", "is 2 x 1 x 3 x 1 = 6, but there are 8 devices"),
        ("size", "`fsdp` must be at least 1, got 0."),
        (
            "pairs",
            "6 particles, which is not a multiple of 4, the number of devices. Choose a `num_pairs` that is a",
        ),
        (
            "batch",
            "shape (5, 6), whose leading axis is not a multiple of 2, the number of devices; change the",
        ),
        ("mesh", "make it with `make_mesh`"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(runs, name, words):
    assert runs["errors"][name].startswith("ValueError: ")
    assert words in runs["errors"][name]


@contextlib.contextmanager
def two_processes(scratch, *arguments):
    """Two processes with two devices each that run together, and the files with what they say of errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        started, logs = [], []
        for i in range(2):
            logs.append(scratch / f"stderr-{i}")
            command = [sys.executable, SCRIPT, "process", str(i), address, *arguments]
            stderr = stack.enter_context(logs[i].open("w"))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield started, logs


@pytest.fixture
def processes(tmp_path):
    """Two processes that train together without end, and the theta that each printed first."""
    with two_processes(tmp_path) as (started, logs):
        # Gloo writes to the standard output as well.
        lines = [next((line for line in process.stdout if line.startswith("[[")), None) for process in started]
        assert all(lines), [log.read_text() for log in logs]
        yield started, [json.loads(line) for line in lines], logs


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_are_one_run_and_end_together(runs, processes, victim):
    started, thetas, logs = processes
    assert thetas[0] == thetas[1]
    history = runs["PES"]["4"]["history"]
    assert_rounding(thetas[0], history[-1][-len(thetas[0]) :])
    time.sleep(10)  # compiled, and in the middle of training
    assert [p.poll() for p in started] == [None, None]
    started[victim].kill()
    begin = time.perf_counter()
    assert started[1 - victim].wait(timeout=60) != 0
    print(f"The other process ended {time.perf_counter() - begin:.1f} s after process {victim} was killed.")
    assert "another task died" in logs[1 - victim].read_text()


NUM_STEPS = 400


def train_to_the_end(scratch, folder):
    with two_processes(scratch, str(folder), str(NUM_STEPS)) as (started, logs):
        assert [p.wait(timeout=300) for p in started] == [0, 0], [log.read_text() for log in logs]


def newest_step(folder):
    return max(
        (int(path.stem.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*.safetensors")), default=0
    )


def last_arrays(folder):
    data = safetensors.numpy.load_file(folder / f"checkpoint-{NUM_STEPS:08d}.safetensors")
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in data.items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What two processes that nobody disturbs end with."""
    scratch = tmp_path_factory.mktemp("uninterrupted")
    train_to_the_end(scratch, scratch / "run")
    return last_arrays(scratch / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_of_which_one_was_killed_continue_to_the_same_bits(uninterrupted, tmp_path, victim):
    folder = tmp_path / "run"
    with two_processes(tmp_path, str(folder), str(NUM_STEPS)) as (started, logs):
        deadline = time.monotonic() + 300
        while newest_step(folder) < 20:
            assert [p.poll() for p in started] == [None, None], [log.read_text() for log in logs]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        started[victim].kill()
        assert started[1 - victim].wait(timeout=60) != 0
    reached = newest_step(folder)
    print(
        f"Process {victim} was killed; the newest checkpoint was then that after {reached} of {NUM_STEPS} meta-steps."
    )
    assert 20 <= reached < NUM_STEPS
    train_to_the_end(tmp_path, folder)
    assert last_arrays(folder) == uninterrupted
    assert any(name.startswith("learner/") for name in uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_stops_both_after_the_same_step(uninterrupted, tmp_path, number):
    folder = tmp_path / "run"
    with two_processes(tmp_path, str(folder), str(NUM_STEPS)) as (started, logs):
        deadline = time.perf_counter() + 240
        while newest_step(folder) < 20:
            assert time.perf_counter() < deadline and all(p.poll() is None for p in started)
            time.sleep(0.01)
        started[1].send_signal(number)
        codes = [p.wait(timeout=60) for p in started]
    first, second = (log.read_text() for log in logs)
    assert codes == [143, -signal.SIGINT if number == signal.SIGINT else 143], (first, second)
    assert ("KeyboardInterrupt" in second) == (number == signal.SIGINT)
    assert f"after meta-step {newest_step(folder)}. Its checkpoint is in" in first
    assert not (folder / ".lock").exists()
    train_to_the_end(tmp_path, folder)
    assert last_arrays(folder) == uninterrupted


@pytest.mark.slow
def test_a_folder_that_the_first_process_refuses_stops_both_and_they_say_why(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "another run"}')
    with two_processes(tmp_path, str(folder), str(NUM_STEPS)) as (started, logs):
        assert all(p.wait(timeout=60) == 1 for p in started), [log.read_text() for log in logs]
    first, second = (log.read_text() for log in logs)
    assert "belongs to a run with another configuration" in first
    assert "The first process failed (see its error)" in second


def test_wrappers_on_one_device():
    """The wrappers hand everything else through, outside of `jit` as well."""
    import jax.numpy as jnp

    from lo_components.estimators import PES
    from lo_components.parametrization import MuP, WidthSpec
    from lo_components.sharding import BatchSharded, ParticleSharded, make_mesh, replicate
    from lo_components.tasks import LinearRegression
    from lo_components.unroll import ConstantHorizon, TruncatedUnroll

    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"particles": 1, "workers": 1, "batch": 1, "fsdp": 1}
    width = WidthSpec((2,), "vector")
    task = LinearRegression(jnp.arange(2.0), jnp.ones(2), widths=width, parametrization=MuP(), max_loss=3.0)
    sharded = BatchSharded(task, mesh)
    assert (sharded.widths, sharded.parametrization, sharded.max_loss) == (width, MuP(), 3.0)
    np.testing.assert_array_equal(sharded.batch(key=jax.random.key(1))[0], task.batch(key=jax.random.key(1))[0])
    estimator = ParticleSharded(PES(TruncatedUnroll(task, ConstantHorizon(2), 1)), mesh)
    assert estimator.estimator.unroll.task.solution.sharding.is_fully_replicated
    assert replicate({"a": 1, "b": jnp.ones(2)}, mesh)["a"] == 1
