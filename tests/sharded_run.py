"""Meta-training of a tiny learner on meshes of virtual CPU devices, for `test_sharding.py`, in fresh processes.

`python sharded_run.py meshes` prints JSON; `python sharded_run.py process INDEX ADDRESS` is one of two processes, which
print JSON and go on training; with a folder and a number of meta-steps they train so many, with checkpoints there.
"""

import functools
import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
DEVICES = {"meshes": 8, "process": 2}
# No product of a device's pairs and the other sizes is the number of all pairs, on which a test relies.
PAIRS, BATCH, STEPS, FSDP_MIN_SIZE = 56, 6, 3, 10
# By the number of devices, or the axis that is tried: sizes of `particles`, `batch` and `fsdp`.
MESHES = {
    "PES": {"2": (2, 1, 1), "4": (4, 1, 1), "8": (8, 1, 1), "batch": (2, 2, 1), "fsdp": (2, 1, 2)},
    "TruncatedES": {"8": (8, 1, 1)},
}


def start(mode: str, index: str = "0", address: str = "", folder: str = "", num_steps: str = "") -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES[mode]}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    # Most of the time goes into compiling programs that run for milliseconds.
    jax.config.update("jax_disable_most_optimizations", True)
    if mode == "process":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(index), heartbeat_timeout_seconds=10)
        if folder:
            run_with_checkpoints(folder, int(num_steps))
        else:
            run_process()
    else:
        print(json.dumps(run_meshes()))


@functools.cache
def learner():
    """Two learned arrays, and a state per parameter."""
    import jax
    import jax.numpy as jnp

    from lo_components.optimizers import AbstractOptimizer, StepContext
    from lo_components.parametrization import SCALE_FREE, every_leaf

    class Averaging(AbstractOptimizer):
        decay: jax.Array
        rate: jax.Array

        def update_rules(self, params):
            return every_leaf(params, SCALE_FREE)

        def init(self, params):
            return jnp.zeros((3, *params.shape), params.dtype)

        def update(self, grads, state, params, *, context=StepContext()):
            decay = jax.nn.sigmoid(self.decay)[:, None]
            state = decay * state + (1 - decay) * grads[None]
            return -self.rate @ state, state

    return Averaging(jnp.asarray([0.0, 1.0, 2.0]), jnp.asarray([0.1, 0.1, 0.1]))


def estimator(mesh=None, kind="PES", *, pairs=PAIRS, batch_size=BATCH):
    import jax.numpy as jnp

    import lo_components as loc
    from lo_components.sharding import BatchSharded, ParticleSharded

    task = loc.tasks.LinearRegression(jnp.arange(6.0), jnp.ones(6), 0.1, batch_size=batch_size)
    task = task if mesh is None else BatchSharded(task, mesh)
    unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(4, 8), 2)
    found = getattr(loc.estimators, kind)(unroll, num_pairs=pairs, std=0.1)
    return found if mesh is None else ParticleSharded(found, mesh, fsdp_min_size=FSDP_MIN_SIZE)


def optimizer():
    # Its state is the sum of discounted estimates. Not Adam, whose first steps are signs of the gradient, also of what
    # rounding leaves of a zero.
    import optax

    return optax.sgd(0.01, momentum=0.9)


def run_meshes() -> dict:
    """The same meta-training without a mesh and on several."""
    import equinox as eqx
    import jax
    from collectives import collectives, leading_sizes

    import lo_components as loc
    from lo_components.sharding import make_mesh, shard_state

    init = eqx.filter_jit(loc.meta.init_meta_state)

    def run(kind, mesh, state):
        step = eqx.filter_jit(loc.meta.meta_step)
        compiled = step.lower(state, estimator(mesh, kind), optimizer()).compile()
        history = []
        for _ in range(STEPS):
            state, metrics = compiled(state, estimator(mesh, kind), optimizer())
            history.append(jax.tree.leaves((metrics, state.optimizer_state, state.learner)))
        hlo = compiled.compiled.as_text()
        return {
            "history": jax.tree.map(lambda x: x.tolist(), history),
            "theta_bytes": sum(x.nbytes for x in jax.tree.leaves(state.learner)),
            "collectives": collectives(hlo),
            "leading_sizes": sorted(leading_sizes(hlo)),
            "specs": specs(state),
        }

    found = {}
    for kind, meshes in MESHES.items():
        plain = init(learner(), estimator(None, kind), optimizer(), key=jax.random.key(1))
        found[kind] = {"plain": run(kind, None, plain)}
        for name, (particles, batch, fsdp) in meshes.items():
            mesh = make_mesh(particles, batch, fsdp, devices=jax.devices()[: particles * batch * fsdp])
            found[kind][name] = run(kind, mesh, shard_state(plain, mesh, fsdp_min_size=FSDP_MIN_SIZE))
    compiled = init.lower(learner(), estimator(mesh, kind), optimizer(), key=jax.random.key(1)).compile()
    state = compiled(learner(), estimator(mesh, kind), optimizer(), key=jax.random.key(1))
    found["init"] = {"specs": specs(state), "collectives": collectives(compiled.compiled.as_text())}
    found["init"]["values"], found["init"]["plain"] = values(state), values(plain)
    found["errors"] = errors()
    return found


def errors() -> dict[str, str]:
    """What is said about sizes that do not fit."""
    import jax
    from helpers import refusals
    from jax.sharding import AxisType

    from lo_components.sharding import make_mesh

    mesh = make_mesh(4, 2)
    explicit = jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Explicit,))
    attempts = {
        "devices": lambda: make_mesh(3),
        "rest": lambda: make_mesh(batch=3),
        "size": lambda: make_mesh(fsdp=0),
        "pairs": lambda: estimator(mesh, pairs=6).init(learner(), key=jax.random.key(0)),
        "batch": lambda: estimator(mesh, batch_size=5).estimator.unroll.task.batch(key=jax.random.key(0)),
        "mesh": lambda: estimator(explicit),
    }
    return refusals(attempts)


def values(state) -> list:
    import equinox as eqx
    import jax

    state = eqx.tree_at(lambda s: s.key, state, jax.random.key_data(state.key))
    return [x.tolist() for x in jax.tree.leaves(eqx.filter(state, eqx.is_array))]


def specs(state) -> dict[str, str]:
    """How each array lies on the mesh, by its name."""
    import equinox as eqx
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
    return {jax.tree_util.keystr(path): str(getattr(x.sharding, "spec", None)) for path, x in leaves}


def run_process() -> None:
    """A few meta-steps together with the other process, then many more."""
    import jax

    import lo_components as loc
    from lo_components.sharding import make_mesh

    def train(num_steps):
        return loc.meta.meta_train(
            learner(),
            estimator(make_mesh()),
            num_steps=num_steps,
            optimizer=optimizer(),
            progress=None,
            key=jax.random.key(1),
        )

    print(json.dumps([x.tolist() for x in jax.tree.leaves(train(STEPS))]), flush=True)
    train(10**8)


def run_with_checkpoints(folder: str, num_steps: int) -> None:
    """A run that goes on from its newest checkpoint, if there is one."""
    import jax

    import lo_components as loc
    from lo_components.sharding import make_mesh

    loc.meta.meta_train(
        learner(),
        estimator(make_mesh()),
        num_steps=num_steps,
        optimizer=optimizer(),
        checkpoints=loc.meta.Checkpoints(folder, {}, every=5),
        progress=None,
        key=jax.random.key(1),
    )


if __name__ == "__main__":
    start(*sys.argv[1:])
