import pytest
from helpers import KeySource


@pytest.fixture
def getkey():
    return KeySource(seed=2026)
