"""Train a small network with a pretrained optimizer: what a release must do where only its wheel is installed."""

# ruff: noqa: E402

import time

start = time.perf_counter()
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

others = time.perf_counter()
import lo_components as loc

end = time.perf_counter()
print(f"lo_components {loc.__version__}, jax {jax.__version__}; imported in {end - start:.1f} s, ", end="")
print(f"of which {end - others:.1f} s without jax, equinox and optax")

x = jax.random.normal(jax.random.key(0), (256, 8))
y = jnp.sin(x).sum(axis=1, keepdims=True)
model = eqx.nn.MLP(8, 1, width_size=32, depth=2, key=jax.random.key(1))
params, static = eqx.partition(model, eqx.is_inexact_array)
optimizer = loc.as_optax(loc.pretrained("residual_muon"))
state = optimizer.init(params)


@jax.jit
def step(params, state):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((jax.vmap(eqx.combine(p, static))(x) - y) ** 2))(params)
    updates, state = optimizer.update(grads, state, params, num_steps=100)
    return optax.apply_updates(params, updates), state, loss


losses = []
for _ in range(100):
    params, state, loss = step(params, state)
    losses.append(float(loss))
print(f"residual_muon: loss {losses[0]:.3f} before the first step, {losses[-1]:.3f} before the last")
assert losses[-1] < 0.1 * losses[0]
