"""Learners and arrays in files. Nothing here runs code from a file."""

from ._arrays import CheckpointError as CheckpointError
from ._arrays import load_arrays as load_arrays
from ._arrays import save_arrays as save_arrays
from ._hub import download as download
from ._learners import card as card
from ._learners import load as load
from ._learners import save as save
from ._published import read_arrays as read_arrays
from ._published import write_arrays as write_arrays
