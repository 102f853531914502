"""Rounds whose workers are spread over devices; `workers_run.py` has what runs there."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "workers_run.py"


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    # Gloo writes to the standard output as well.
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def found():
    return result(started("meshes"))


@pytest.fixture(scope="module")
def more():
    return result(started("all-meshes"))


def assert_rounding(actual, expected):
    """Equal up to the order of summation. It was measured as 6e-8, of numbers below 1."""
    for name, values in expected["params"].items():
        np.testing.assert_allclose(actual["params"][name], values, rtol=0, atol=2e-6)
    np.testing.assert_allclose(actual["losses"], expected["losses"], rtol=1e-5)


def test_a_round_does_not_depend_on_the_mesh(found):
    for name, runs in found["runs"].items():
        assert runs["0"]["losses"][-1] != runs["0"]["losses"][0], name
        for run in runs.values():
            assert_rounding(run, runs["0"])


@pytest.mark.slow
def test_no_aggregators_round_depends_on_the_mesh(more):
    for name, runs in more["runs"].items():
        for mesh, run in runs.items():
            assert_rounding(run, runs["0"])
            print(f"{name}, {mesh} devices: {run['sent']:.0f} bytes sent, of {run['params_bytes']} of parameters")


def ring(run, devices=8):
    """What each device sends to sum the parameters."""
    return 2 * run["params_bytes"] * (devices - 1) / devices


def test_local_steps_communicate_nothing(found):
    assert found["local"] == []


@pytest.mark.parametrize("name", ["Mean", "LOpt-A"])
def test_a_mean_costs_one_sum_of_the_size_of_the_parameters(found, name):
    run = found["runs"][name]["whole"]
    assert {c["kind"] for c in run["collectives"]} == {"all-reduce"}
    # Beside it, who is used.
    assert ring(run) <= run["sent"] <= ring(run) + 64


@pytest.mark.parametrize(("name", "mesh"), [("Mean", "8"), ("LAgg-A", "8")])
def test_slices_cost_what_a_sum_costs(found, name, mesh):
    """Beside sums of row, column and channel statistics, whose size is that of a tensor's sides."""
    run = found["runs"][name][mesh]
    kinds = {
        kind: sum(c["bytes"] for c in run["collectives"] if c["kind"] == kind) for kind in ("all-to-all", "all-gather")
    }
    assert kinds == {"all-to-all": run["params_bytes"], "all-gather": run["params_bytes"]}
    assert {c["kind"] for c in run["collectives"]} == {"all-to-all", "all-gather", "all-reduce"}
    assert sum(c["bytes"] for c in run["collectives"] if c["kind"] == "all-reduce") < 800


def test_state_lies_in_slices(found):
    # Momenta; statistics of rows and columns; and the number of rounds.
    assert found["runs"]["LAgg-A"]["8"]["specs"] == ["P()", "P(None, 'workers')", "P(None, None, 'workers')"]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((32, 16), 2),  # not rows, if another axis will do
        ((32, 10), 1),  # but rows, if it leaves devices idle
        ((10,), 1),
        ((1,), None),  # all to all is cheaper
        ((), None),
        ((0, 1), None),
        ((13, 7), 2),
        ((8192, 49), 2),  # evaluated in blocks of rows
        ((64, 8, 16), 3),  # the largest of equals
    ],
)
def test_tensors_are_cut_where_slices_are_most_equal(shape, axis):
    from lo_components.sharding._workers import _slice_spec

    spec = tuple(_slice_spec((8, *shape), 8))
    assert spec == (() if axis is None else (*[None] * axis, "workers"))


def test_parameters_are_everywhere_after_a_round(found):
    assert {run["params_specs"] for runs in found["runs"].values() for run in runs.values()} <= {"", "P()"}


def test_sizes_that_devices_do_not_divide_change_nothing(found):
    assert_rounding(found["uneven"]["6"], found["uneven"]["0"])
    assert found["uneven"]["6"]["sent"] < 1.5 * ring(found["uneven"]["6"], 6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "workers",
            "6 workers, which is not a multiple of 8, the number of devices. Choose a `num_workers` that is a",
        ),
        ("mesh", "make it with `make_mesh`"),
        ("size", "is 2 x 3 x 1 x 1 = 6, but there are 8 devices"),
        ("batch", "`task` must not be `BatchSharded`"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(found, name, words):
    assert found["errors"][name].startswith("ValueError: ")
    assert words in found["errors"][name]


@pytest.mark.slow
def test_two_processes_are_one_round(found, more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [started("process", str(i), address) for i in range(2)]
    try:
        first, second = map(result, processes)
    finally:
        for process in processes:
            process.kill()
    assert first == second
    for name, run in first.items():
        assert_rounding(run, more["runs"][name]["0"])
        assert run["sent"] == more["runs"][name]["4"]["sent"]
