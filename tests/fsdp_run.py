"""Train with sharded parameters on eight virtual devices, and print what `test_fsdp.py` checks as JSON.

The argument is the hidden size of the learned optimizer.
"""

import json
import os
import re
import sys

# The level is that of the code generator, which has most of the work; programs are partitioned as always.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lo_components as loc

SHAPES = {"matrix": (1024, 512), "bias": (512,), "a": (64, 32), "b": (64, 32)}
LAYOUTS = {
    "rows": {"matrix": P("x", None), "bias": P("x"), "a": P("x", None), "b": P("x", None)},
    "columns": {"matrix": P(None, "x"), "bias": P("x"), "a": P(None, "x"), "b": P(None, "x")},
}
MESHES = {
    "automatic": jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)),
    "explicit": jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,)),
}


def new_params():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)}


def training(optimizer):
    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(3.0 * p), params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return lambda params, state: jax.lax.scan(step, (params, state), None, 3)[0][0]


def largest_difference(found, expected, start):
    """Relative to the largest change of each tensor."""
    found, expected, start = (jax.tree.map(np.asarray, x) for x in (found, expected, start))
    return max(float(np.max(np.abs(found[k] - expected[k])) / np.max(np.abs(expected[k] - start[k]))) for k in expected)


def communicated(hlo: str) -> list[int]:
    """The numbers of elements of the arrays that devices add up, gather or exchange."""
    types = re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", hlo)
    shapes = [shape for arrays in types for shape in re.findall(r"\w+\[([\d,]*)\]", arrays)]
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


def main(size: int):
    results = {}
    start = new_params()
    optimizer = loc.optimizers.as_optax(loc.recipes.mulo(hidden_size=size, key=jax.random.key(1)))
    train = training(optimizer)
    expected = jax.jit(train)(start, optimizer.init(start))
    # Each combination compiles for seconds; two show every mesh and every layout.
    for (mesh_name, mesh), (layout, specs) in zip(MESHES.items(), LAYOUTS.items(), strict=True):
        shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        params = jax.device_put(start, shardings)
        state = optimizer.init(params)
        with jax.set_mesh(mesh):
            compiled = jax.jit(train).lower(params, state).compile()
            found = compiled(params, state)
        results[f"{mesh_name} {layout}"] = {
            "difference": largest_difference(found, expected, start),
            "state": all(
                moment[name].sharding.is_equivalent_to(NamedSharding(mesh, P(None, *spec)), moment[name].ndim)
                for name, spec in specs.items()
                for moment in (state.accumulators[0].m, state.accumulators[1].v)
            ),
            "result": all(x.sharding.is_equivalent_to(shardings[k], x.ndim) for k, x in found.items()),
            "communicated": communicated(compiled.as_text()),
        }
    mesh = MESHES["explicit"]
    particles = {name: jax.device_put(jnp.stack([x] * 8), NamedSharding(mesh, P("x"))) for name, x in start.items()}

    def of_particle(params):
        params = jax.tree.map(lambda x: x[0], params)
        return jax.tree.map(lambda x: x[None], train(params, optimizer.init(params)))

    found = jax.jit(jax.shard_map(of_particle, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(particles)
    one = jax.tree.map(lambda x: np.asarray(x)[3], found)
    results["shard_map"] = {"difference": largest_difference(one, expected, start)}
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
