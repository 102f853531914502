import abc

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from ._base import AbstractTask


class AbstractTaskFamily(eqx.Module):
    """A distribution over tasks whose parameters have the same shapes. Each episode of an unroll samples one.

    Samples should be small (numbers, not data sets), since every particle carries one. Tasks of different shapes, such
    as networks of several widths, need one estimator each: see [`lo_components.estimators.Mixture`][].
    """

    @abc.abstractmethod
    def sample(self, *, key: PRNGKeyArray) -> PyTree:
        """A random sample that identifies one task of the family."""

    @abc.abstractmethod
    def task(self, sampled: PyTree) -> AbstractTask:
        """The task of one sample.

        **Arguments:**

        - `sampled`: from `sample`.
        """
