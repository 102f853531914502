"""What tests and property tests share."""

import equinox as eqx
import jax
import pytest

# The package itself is imported by tests only: jaxtyping's import hook must see it first.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def quick_compilation(request):
    """Small programs spend their time in XLA's optimizations; large ones, in slow tests, are better with them."""
    slow = request.node.get_closest_marker("slow") is not None
    jax.config.update("jax_disable_most_optimizations", not slow)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def standard_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_freed():
    """Each holds mapped memory, of which a process may have 65,530 pieces on Linux; beyond, the compiler crashes."""
    yield
    eqx.clear_caches()
    jax.clear_caches()
