"""Sharded parameters stay sharded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ["4 automatic rows", "4 explicit columns", "32 automatic columns", "32 explicit rows"]


@pytest.fixture(scope="module")
def results():
    script = Path(__file__).parent / "fsdp_run.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [*CASES, "shard_map"])
def test_sharded_training_computes_the_same_numbers(results, case):
    # Relative to the change of a parameter, which is about 1000 times smaller than the parameter itself.
    assert results[case]["difference"] < 5e-3


@pytest.mark.parametrize("case", CASES)
def test_states_are_created_where_their_parameters_lie(results, case):
    assert results[case]["state"]


@pytest.mark.parametrize("case", CASES)
def test_parameters_stay_where_they_lie(results, case):
    assert results[case]["result"]


@pytest.mark.parametrize("case", CASES)
def test_only_statistics_of_rows_columns_and_tensors_are_communicated(results, case):
    assert 0 < max(results[case]["communicated"]) <= 3 * 1024
