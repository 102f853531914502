import abc

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from ._base import AbstractTask


class AbstractTaskFamily(eqx.Module):
    """A distribution of tasks of one shape: every episode of an unroll draws one and keeps it.

    The samples should be small (numbers, not data sets), since every particle carries one. Tasks whose parameters have
    other shapes, such as networks of several widths, go into one estimator each: see
    [`lo_components.estimators.Mixture`][].
    """

    @abc.abstractmethod
    def sample(self, *, key: PRNGKeyArray) -> PyTree:
        """What tells one task of the family from another."""

    @abc.abstractmethod
    def task(self, sampled: PyTree) -> AbstractTask:
        """The task of one sample."""
