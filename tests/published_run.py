"""Three steps of published optimizers and residual_muon, on one and on eight devices; prints differences as JSON."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lo_components as loc
from lo_components.optimizers import StepContext

KEY = jax.random.key(0)
RECIPES = {
    "velo": loc.recipes.velo(lstm_size=8, num_networks=4, key=KEY),
    "celo": loc.recipes.celo(key=KEY),
    "celo_adam": loc.recipes.celo_adam(key=KEY),
    "sinv6": loc.recipes.sinv6(key=KEY),
    "celo2": loc.recipes.celo2(1e-2, key=KEY),
    "celo2_base": loc.recipes.celo2_base(1e-2, key=KEY),
    "residual_muon": loc.pretrained("residual_muon"),
    "rnn_mlp": loc.recipes.rnn_mlp(lstm_size=8, key=KEY),
    "star": loc.recipes.star(key=KEY),
    "nn_adam": loc.recipes.nn_adam(key=KEY),
    "l2l_lstm": loc.recipes.l2l_lstm(key=KEY),
}
SHAPES = {"w": (64, 32), "v": (64, 32), "b": (32,), "s": ()}
SPECS = {"w": P("x", None), "v": P(None, "x"), "b": P("x"), "s": P()}


def main():
    params = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(SHAPES.items())}
    meshes = [jax.make_mesh((8,), ("x",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)]
    layouts = [{name: NamedSharding(mesh, spec) for name, spec in SPECS.items()} for mesh in meshes]
    sharded = [jax.device_put(params, layout) for layout in layouts]

    @eqx.filter_jit
    def train(optimizer, params, state):
        context = StepContext(loss=jnp.float32(1.0), num_steps=jnp.int32(100))
        # Updates are added apart: they may be so small that rounding of the parameters hides them.
        total = jax.tree.map(jnp.zeros_like, params)
        for _ in range(3):
            grads = jax.tree.map(lambda p: jnp.sin(3.0 * p), params)
            updates, state = optimizer.update(grads, state, params, context=context)
            params, total = (optax.apply_updates(x, updates) for x in (params, total))
        return total

    for name, optimizer in RECIPES.items():
        expected, *found = (
            jax.tree.map(np.asarray, train(optimizer, p, optimizer.init(p))) for p in (params, *sharded)
        )
        largest = [
            max(float(np.max(np.abs(expected[k] - f[k])) / np.max(np.abs(expected[k]))) for k in SHAPES) for f in found
        ]
        print(json.dumps({"name": name, "largest": max(largest)}), flush=True)


if __name__ == "__main__":
    main()
