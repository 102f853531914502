"""Rounds whose workers are spread over virtual CPU devices, for `test_workers.py`, in fresh processes.

`python workers_run.py meshes` prints JSON, `python workers_run.py all-meshes` more of it;
`python workers_run.py process INDEX ADDRESS` is one of two processes, each with two devices.
"""

import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
DEVICES = {"meshes": 8, "all-meshes": 8, "process": 2}
WORKERS, ROUNDS = 8, 3
# By aggregator: numbers of devices, 0 for no mesh, and "whole" for 8 devices that exchange no slices.
RUNS = {
    "meshes": {"Mean": [0, 8, "whole"], "LAgg": [0, 1, 2, 4], "LOpt-A": [0, "whole"], "LAgg-A": [0, 8]},
    "all-meshes": {
        "Mean": [0, 1, 2, 4, 8, "whole"],
        "SlowMo": [0, 1, 2, 4, 8, "whole"],
        "LOpt-A": [0, 1, 2, 4, 8, "whole"],
        "LAgg-A": [0, 1, 2, 4, 8],
        "pooled LAgg-A": [0, 1, 2, 4, 8],
    },
}


def start(mode: str, index: str = "0", address: str = "") -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES[mode]}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    # Most of the time goes into compiling programs that run for milliseconds.
    jax.config.update("jax_disable_most_optimizations", True)
    if mode == "process":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(index))
        print(json.dumps({name: run(name, 4) for name in ("Mean", "LAgg-A")}))
    else:
        runs = {name: {str(devices): run(name, devices) for devices in some} for name, some in RUNS[mode].items()}
        uneven = {str(devices): run("LAgg", devices, workers=6, hidden=13) for devices in (0, 6)}
        print(json.dumps({"runs": runs, "uneven": uneven, "local": local_collectives(), "errors": errors()}))


def make(name: str, workers: int):
    import jax

    import lo_components as loc

    sizes = dict(hidden_size=2, step_mult=0.1, key=jax.random.key(0))
    return {
        "Mean": loc.aggregators.Mean,
        "SlowMo": loc.aggregators.SlowMo,
        "LOpt-A": lambda: loc.recipes.lopt_a(**sizes),
        "LAgg": lambda: loc.recipes.lagg(workers, **sizes),
        "LAgg-A": lambda: loc.recipes.lagg_a(workers, **sizes),
        "pooled LAgg-A": lambda: loc.recipes.pooled_lagg_a(embedding_size=2, **sizes),
    }[name]()


def make_task(hidden: int = 32):
    """Regression with two layers; 16 inputs, and every size a multiple of eight."""
    import jax
    import jax.numpy as jnp

    from lo_components.parametrization import SP, AbstractParametrization
    from lo_components.tasks import AbstractTask

    class Regression(AbstractTask):
        teacher: jax.Array
        widths: None = None
        parametrization: AbstractParametrization = SP()
        max_loss: float = 1e3

        def init(self, *, key):
            a, b = jax.random.split(key)
            first, second = jax.random.normal(a, (hidden, 16)) / 4, jax.random.normal(b, (8, hidden)) / 6
            return {"first": first, "bias": jnp.zeros(hidden), "second": second}

        def batch(self, *, key, split="train", worker=None):
            x = jax.random.normal(key, (4, 16))
            return x, x @ self.teacher

        def loss(self, params, batch, *, key):
            x, y = batch
            hidden = jax.nn.tanh(x @ params["first"].T + params["bias"])
            return jnp.mean(jnp.square(hidden @ params["second"].T - y))

    return Regression(jax.random.normal(jax.random.key(5), (16, 8)) / 4)


def run(name: str, mesh: int | str, *, workers: int = WORKERS, hidden: int = 32) -> dict:
    """Some rounds with one aggregator; for `mesh` see `RUNS`."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from collectives import bytes_sent, collectives

    import lo_components as loc
    from lo_components.sharding import WorkerSharded, make_mesh, replicate

    aggregator, task, key = make(name, workers), make_task(hidden), jax.random.key(1)
    inner = loc.unroll.LocalRound(workers, 3, loc.OptaxOptimizer(optax.sgd, 0.1))
    params = task.init(key=jax.random.key(2))
    devices = 8 if mesh == "whole" else int(mesh)
    if devices:
        spread = make_mesh(1, workers=devices, devices=jax.devices()[:devices])
        inner = WorkerSharded(inner, spread, mesh != "whole")
        aggregator, task, params, key = replicate((aggregator, task, params, key), spread)

    @eqx.filter_jit
    def round(aggregator, task, params, state, key):
        return inner.step(aggregator, task, params, state, jnp.asarray(10, jnp.int32), key=key)

    state = eqx.filter_jit(lambda a, p: inner.init(a, p))(aggregator, params)
    losses = []
    for _ in range(ROUNDS):
        key = jax.random.fold_in(key, 0)
        loss, params, state = round(aggregator, task, params, state, key)
        losses.append(float(loss))
    params_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
    # The program of a later round, whose state lies where the first one left it.
    found = collectives(round.lower(aggregator, task, params, state, key).compile().compiled.as_text())
    return {
        "losses": losses,
        "params": jax.tree.map(lambda x: x.tolist(), params),
        "specs": sorted({str(getattr(x.sharding, "spec", "")) for x in jax.tree.leaves(state)}),
        "params_specs": "".join({str(getattr(x.sharding, "spec", "")) for x in jax.tree.leaves(params)}),
        "params_bytes": params_bytes,
        "collectives": found,
        "sent": bytes_sent(found, devices) if devices else 0.0,
    }


def local_collectives() -> list:
    """Those of local steps alone."""
    import equinox as eqx
    import jax
    from collectives import collectives

    import lo_components as loc
    from lo_components.parametrization import UNSCALED, every_leaf
    from lo_components.sharding import WorkerSharded, make_mesh

    class Nothing(loc.aggregators.AbstractAggregator):
        """Says how far the workers came, and moves nothing."""

        def update_rules(self, params):
            return every_leaf(params, UNSCALED)

        def init(self, params):
            return None

        def aggregate(self, deltas, state, params, *, present=None, context=loc.optimizers.StepContext()):
            return jax.tree.map(lambda p: 0.0 * p, params), deltas

    inner = WorkerSharded(loc.unroll.LocalRound(WORKERS, 3), make_mesh(1, workers=8), False)
    task = make_task()

    def deltas(params, key):
        return inner.step(Nothing(), task, params, None, None, key=key)[2]

    compiled = eqx.filter_jit(deltas).lower(task.init(key=jax.random.key(0)), jax.random.key(1)).compile()
    return collectives(compiled.compiled.as_text())


def errors() -> dict[str, str]:
    import jax
    from helpers import refusals

    import lo_components as loc
    from lo_components.sharding import BatchSharded, WorkerSharded, make_mesh, sliced

    def batch_sharded():
        mesh = make_mesh(1, 2, workers=4)
        task = loc.tasks.ReducedBatch(BatchSharded(make_task(), mesh), 1.0)
        task = task.task(task.sample(key=jax.random.key(0)))
        inner = WorkerSharded(loc.unroll.LocalRound(4, 1), mesh)
        return inner.step(make("Mean", 4), task, task.init(key=jax.random.key(0)), None, None, key=jax.random.key(0))

    attempts = {
        "batch": batch_sharded,
        "workers": lambda: WorkerSharded(loc.unroll.LocalRound(6, 1), make_mesh(1, workers=8)),
        "mesh": lambda: sliced({}, jax.make_mesh((8,), ("workers",))),
        "size": lambda: make_mesh(workers=3),
    }
    return refusals(attempts)


if __name__ == "__main__":
    start(*sys.argv[1:])
