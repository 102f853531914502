import abc

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from ._base import AbstractTask


class AbstractTaskFamily(eqx.Module):
    """A distribution of tasks of one shape: every episode of an unroll draws one and keeps it.

    What is drawn should be small (numbers, not data sets), since every particle carries it. Tasks whose parameters have
    other shapes, such as networks of several widths, go into one estimator each: see
    [`lo_components.estimators.Mixture`][].
    """

    @abc.abstractmethod
    def sample(self, *, key: PRNGKeyArray) -> PyTree:
        """What tells one task of the family from another."""

    @abc.abstractmethod
    def task(self, drawn: PyTree) -> AbstractTask:
        """The task for what was drawn."""
