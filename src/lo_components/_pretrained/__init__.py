"""Pretrained learners: weights and cards in a folder, and those that this package contains."""

from ._card import Card as Card
from ._folder import Pretrained as Pretrained
from ._folder import pretrained as pretrained
