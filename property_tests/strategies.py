"""Strategies of the property tests. There are few distinct shapes, since each one costs a compilation."""

from hypothesis import strategies as st

# Sizes of a network whose width is a multiple of the base width.
base_widths = st.integers(1, 64)
width_ratios = st.integers(1, 32)
depths = st.integers(1, 5)
multipliers = st.floats(0.01, 100.0)
seeds = st.integers(0, 2**31 - 1)
gradient_scales = st.sampled_from([1e-4, 1e-2, 1.0, 30.0])


def log_floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Log-uniform floats from `low` to `high`."""
    return st.floats(0.0, 1.0).map(lambda u: low * (high / low) ** u)
