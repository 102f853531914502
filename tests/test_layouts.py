"""Small cases of sharded parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results():
    script = Path(__file__).parent / "layouts_run.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_states_follow_explicit_axes_inside_shard_map(results):
    found = results["manual_and_explicit_axes"]
    assert found["difference"] < 1e-6
    assert found["states"] == {"w": "P(None, None, 'y')", "v": "P(None, None, None)"}


def test_deltas_may_be_sharded_where_parameters_are_not(results):
    assert results["sharded_deltas"]["difference"] < 1e-5


def test_tensors_of_one_shape_and_different_layouts_stay_where_they_lie(results):
    found = results["mixed_layouts"]
    assert found["difference"] < 1e-6
    assert found["stay"] and not found["communicated"]


def test_states_are_created_in_their_places_by_one_program_for_each_shape_and_layout(results):
    assert results["initial_states"] == {
        "programs": [1, 2],
        "places": {"a": "P(None, 'x', None)", "b": "P(None, None, 'x')"},
    }
