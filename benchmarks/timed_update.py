"""Time compiled updates of learned optimizers and of `optax.adam`, in turn."""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from models import Shapes

import lo_components as loc


def adam() -> optax.GradientTransformation:
    return optax.adam(1e-3)


def small_fc_lopt(hidden_size: int, hidden_layers: int) -> optax.GradientTransformation:
    optimizer = loc.recipes.small_fc_lopt(hidden_size=hidden_size, hidden_layers=hidden_layers, key=jax.random.key(0))
    return loc.optimizers.as_optax(optimizer)


def with_length(optimizer, num_steps: int = 1000) -> optax.GradientTransformation:
    """An optimizer that needs the length of training, as a transformation that knows it."""
    transformation = loc.optimizers.as_optax(optimizer)
    update = lambda grads, state, params: transformation.update(grads, state, params, num_steps=num_steps)  # noqa: E731
    return optax.GradientTransformation(transformation.init, update)


class TimedUpdate:
    """One compiled `update` + `apply_updates` with parameters and state donated."""

    def __init__(self, transformation: optax.GradientTransformation, shapes: Shapes):
        rng = np.random.default_rng(1)
        params = {name: 0.03 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self.params = jax.device_put(params)
        self.grads = jax.jit(lambda params: jax.tree.map(lambda p: 0.1 * p + 1e-3, params))(self.params)
        self.state = jax.jit(transformation.init)(self.params)
        self.num_params = sum(p.size for p in params.values())

        def step(params, state, grads):
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        begin = time.perf_counter(), time.process_time()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads)
        traced = time.perf_counter()
        self.step = lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - begin[0], time.perf_counter() - traced
        self.cpu_seconds = time.process_time() - begin[1]
        self.temp_bytes = self.step.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, calls: int) -> None:
        begin = time.perf_counter()
        for _ in range(calls):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready(self.params)
        self.seconds.append((time.perf_counter() - begin) / calls)


def time_in_turn(contenders: Iterable[TimedUpdate], *, rounds: int, calls: int | None) -> None:
    """Call each contender `calls` times in every round, or for about 0.1 s (at most 200 times) if `calls` is `None`.

    Two calls before the first round warm up and are not counted.
    """
    contenders = list(contenders)
    calls_of = {}
    for contender in contenders:
        contender.run(1)
        contender.run(1)
        calls_of[contender] = calls or min(200, max(1, int(0.1 / contender.seconds[-1])))
        contender.seconds.clear()
    for _ in range(rounds):
        for contender in contenders:
            contender.run(calls_of[contender])


def row(contender: TimedUpdate, adam: TimedUpdate) -> dict[str, Any]:
    """The medians of a contender. The ratio is the median over rounds, in each of which both were called."""
    return {
        "ns_per_param": 1e9 * statistics.median(contender.seconds) / contender.num_params,
        "ratio_to_adam": statistics.median(c / a for c, a in zip(contender.seconds, adam.seconds, strict=True)),
        "temp_bytes_per_param": contender.temp_bytes / contender.num_params,
        "trace_seconds": contender.trace_seconds,
        "compile_seconds": contender.compile_seconds,
        "cpu_seconds": contender.cpu_seconds,
    }
