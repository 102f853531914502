"""Settings and fixtures for tests and property tests."""

import equinox as eqx
import jax
import pytest

# Do not import the package here: jaxtyping's import hook must be installed first.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Compile without XLA's optimizations, which dominate small programs; slow tests have large ones and keep them."""
    slow = request.node.get_closest_marker("slow") is not None
    jax.config.update("jax_disable_most_optimizations", not slow)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def standard_promotion():
    """Standard dtype promotion, since optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_freed():
    """Free compiled programs after each module. Linux allows 65,530 memory maps; beyond that the compiler crashes."""
    yield
    eqx.clear_caches()
    jax.clear_caches()
