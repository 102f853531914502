"""Published optimizers compute the same updates for sharded parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sharded_parameters_get_the_same_updates():
    command = [sys.executable, Path(__file__).parent / "published_run.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["name"]: row["largest"] for row in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 11
    # Relative to the largest change of each tensor. Orthogonalization amplifies rounding.
    assert max(found.values()) < 1e-3, found
