"""Training on several devices: a mesh, and wrappers that shard particles, workers, batches and parameters over it."""

from ._batch import BatchSharded as BatchSharded
from ._mesh import make_mesh as make_mesh
from ._mesh import replicate as replicate
from ._particles import ParticleSharded as ParticleSharded
from ._particles import shard_state as shard_state
from ._workers import WorkerSharded as WorkerSharded
from ._workers import sliced as sliced
