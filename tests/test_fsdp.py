"""Sharded parameters stay sharded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

every_layout = pytest.mark.parametrize("case", ["automatic rows", "explicit columns"])


# A large head is evaluated in blocks.
@pytest.fixture(scope="module", params=[4, pytest.param(32, marks=pytest.mark.slow)])
def results(request):
    script = Path(__file__).parent / "fsdp_run.py"
    command = [sys.executable, script, str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["automatic rows", "explicit columns", "shard_map"])
def test_sharded_training_computes_the_same_numbers(results, case):
    # Relative to the change of a parameter, which is about 1000 times smaller than the parameter itself.
    assert results[case]["difference"] < 5e-3


@every_layout
def test_states_are_created_where_their_parameters_lie(results, case):
    assert results[case]["state"]


@every_layout
def test_parameters_stay_where_they_lie(results, case):
    assert results[case]["result"]


@every_layout
def test_only_statistics_of_rows_columns_and_tensors_are_communicated(results, case):
    assert 0 < max(results[case]["communicated"]) <= 3 * 1024
