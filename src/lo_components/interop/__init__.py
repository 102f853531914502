"""Weights of reference implementations. Nothing here runs code from a file."""

from ._pylo import from_pylo as from_pylo
from ._pylo import to_pylo as to_pylo
from ._reference import from_reference as from_reference
from ._reference import to_reference as to_reference
