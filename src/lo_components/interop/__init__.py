"""Weights in files, and weights from elsewhere. Nothing here runs code from a file."""

from ._reference import from_reference as from_reference
from ._weights import CheckpointError as CheckpointError
from ._weights import load_arrays as load_arrays
from ._weights import save_arrays as save_arrays
