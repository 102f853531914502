"""Weights of reference implementations. Nothing here runs code from a file."""

from ._reference import from_reference as from_reference
