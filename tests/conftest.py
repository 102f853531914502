import equinox as eqx
import jax
import pytest
from helpers import KeySource

# The package itself is imported by tests only: jaxtyping's import hook must see it first.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def getkey():
    return KeySource(seed=2026)


@pytest.fixture
def quick_compilation():
    """For tests of small programs, which would spend their time in XLA's optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_freed():
    """Each holds mapped memory, of which a process may have 65,530 pieces on Linux; beyond, the compiler crashes."""
    yield
    eqx.clear_caches()
    jax.clear_caches()
