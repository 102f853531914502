"""Compute small cases of sharded parameters on eight virtual devices, for `test_layouts.py`."""

import json

import fsdp_run  # sets the number of devices
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lo_components.accumulators import Momentum
from lo_components.features import Concat, Gradient, Momenta, PooledWorkerDeltas
from lo_components.heads import LinearHead
from lo_components.pipeline import Pipeline, init_tree, update_tree
from lo_components.steps import Direction

MESH = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)


def new_pipeline(*features):
    features = Concat(Gradient(), Momenta(1), *features)
    head = LinearHead(features.size, 1, key=jax.random.key(0))
    return Pipeline((Momentum((0.5,)),), features, head, Direction(1.0))


def arrays(shapes: dict) -> dict:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def placed(tree: dict, specs: dict) -> dict:
    return {name: jax.device_put(x, NamedSharding(MESH, specs[name])) for name, x in tree.items()}


def difference(found: dict, expected: dict) -> float:
    return max(float(np.max(np.abs(np.asarray(found[k]) - np.asarray(expected[k])))) for k in expected)


def manual_and_explicit_axes():
    """Inside `shard_map` over one axis, with parameters sharded over another one."""
    pipeline, host, specs = new_pipeline(), arrays({"w": (8, 6), "v": (8, 6)}), {"w": P(None, "y"), "v": P()}
    seen = []

    def update(params):
        state = init_tree(pipeline, params)
        seen.append({name: str(jax.typeof(x).sharding.spec) for name, x in state.accumulators[0].m.items()})
        return update_tree(pipeline, params, state, params)[0]

    mapped = jax.jit(jax.shard_map(update, mesh=MESH, in_specs=P(), out_specs=P(), axis_names={"x"}))
    with jax.set_mesh(MESH):
        found = mapped(placed(host, specs))
    return {"states": seen[0], "difference": difference(found, jax.jit(update)(host))}


def sharded_deltas():
    """Deltas are sharded over the workers, parameters are not; the large tensor is evaluated in blocks."""
    pipeline = new_pipeline(PooledWorkerDeltas(2, key=jax.random.key(1)))
    shapes = {"large": (1024, 512), "a": (6, 4), "b": (6, 4), "short": (5,), "shorter": (3,)}
    params, deltas = arrays(shapes), arrays({name: (8, *shape) for name, shape in shapes.items()})

    @jax.jit
    def update(params, deltas):
        grads = jax.tree.map(lambda d: jnp.mean(d, axis=0), deltas)
        return update_tree(pipeline, grads, init_tree(pipeline, params), params, deltas=deltas)[0]

    expected = update(params, deltas)
    with jax.set_mesh(MESH):
        found = update(placed(params, dict.fromkeys(shapes, P())), placed(deltas, dict.fromkeys(shapes, P("x"))))
    return {"difference": difference(found, expected)}


def mixed_layouts():
    """Tensors of one shape that are sharded along different axes."""
    pipeline, host = new_pipeline(), arrays({"a": (64, 32), "b": (64, 32), "c": (64, 32)})
    params = placed(host, {"a": P("x", None), "b": P(None, "x"), "c": P("x", None)})
    state = init_tree(pipeline, params)
    update = jax.jit(lambda params, state: update_tree(pipeline, params, state, params))
    with jax.set_mesh(MESH):
        compiled = update.lower(params, state).compile()
        found, new_state = compiled(params, state)
    expected = update(host, init_tree(pipeline, host))[0]
    pairs = zip(jax.tree.leaves(new_state.accumulators), jax.tree.leaves(state.accumulators), strict=True)
    return {
        "difference": difference(found, expected),
        "communicated": fsdp_run.communicated(compiled.as_text()),
        "stay": all(x.sharding.is_equivalent_to(y.sharding, x.ndim) for x, y in pairs),
    }


def initial_states():
    """The programs that create the states of sharded parameters."""
    names = []

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    layouts = [{"a": P("x", None), "b": P("x", None)}, {"a": P("x", None), "b": P(None, "x")}]
    params = [placed(arrays({"a": (512, 32), "b": (512, 32)}), specs) for specs in layouts]
    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for tree in params:
        init_tree(new_pipeline(), tree)
        counts.append(len([name for name in names if "init" in name]))
    put, jax.device_put = jax.device_put, None  # states are created in their places, not moved there
    state = init_tree(new_pipeline(), params[1])
    jax.device_put = put
    moments = state.accumulators[0].m
    return {
        "programs": counts,
        "places": {name: str(x.sharding.spec) for name, x in moments.items()},
    }


if __name__ == "__main__":
    print(
        json.dumps({f.__name__: f() for f in (manual_and_explicit_axes, sharded_deltas, mixed_layouts, initial_states)})
    )
