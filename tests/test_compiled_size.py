"""Sizes of programs, which decide compile times and overheads and do not depend on the machine."""

import collections
import re
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import lo_components as loc

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from models import transformer

# Operations that only rearrange or create values: they stack tensors, and take the results apart.
MOVES = {
    "slice",
    "dynamic_slice",
    "concatenate",
    "reshape",
    "broadcast_in_dim",
    "transpose",
    "pad",
    "constant",
    "convert",
}


def stablehlo(function, *args) -> collections.Counter:
    """The operations of a function as it is given to the compiler, with those of its calls and loops, by name."""
    module = jax.jit(function).lower(*args).compiler_ir("stablehlo")
    functions = {op.name.value: op for op in module.body.operations}
    counts: dict[str, collections.Counter] = {}

    def inside(operation) -> collections.Counter:
        found = collections.Counter()
        for region in operation.regions:
            for block in region.blocks:
                for op in block.operations:
                    kind = op.operation.name
                    if kind == "func.call":
                        found += called(op.attributes["callee"].value)
                    elif kind.startswith("stablehlo."):
                        found += collections.Counter([kind.removeprefix("stablehlo.")]) + inside(op)
        return found

    def called(name: str) -> collections.Counter:
        if name not in counts:
            counts[name] = inside(functions[name])
        return counts[name]

    return called("main")


def update_operations(transformation, layers: int) -> int:
    """The operations that compute something in one update of a transformer."""
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in transformer(layers).items()}
    state = jax.eval_shape(transformation.init, params)
    counts = stablehlo(transformation.update, params, state, params)
    return sum(number for kind, number in counts.items() if kind not in MOVES)


@pytest.mark.parametrize("hidden_size", [4, pytest.param(32, marks=pytest.mark.slow)])
def test_an_update_of_48_layers_computes_hardly_more_operations_than_one_of_12(hidden_size):
    learner = loc.recipes.small_fc_lopt(hidden_size=hidden_size, key=jax.random.key(0))
    optimizer = loc.optimizers.as_optax(learner)
    few, many = update_operations(optimizer, 12), update_operations(optimizer, 48)
    assert many <= 1.3 * few


def test_operations_are_counted_in_calls_and_loops(standard_promotion):
    def function(x):
        twice = jax.jit(lambda x: jnp.sin(x) + 1)
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.cos(x), twice(twice(x)))

    counts = stablehlo(function, jnp.zeros(3))
    assert (counts["sine"], counts["cosine"], counts["while"]) == (2, 1, 1)
    # Adam's updates are the opposite: every tensor has its own.
    assert update_operations(optax.adam(1e-3), 4) > 3 * update_operations(optax.adam(1e-3), 1)


# Instructions that cost nothing when they run.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) .*\{\n(?P<body>(?:  .*\n)*)\}", re.MULTILINE)
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) (?P<kind>[a-z][\w-]*)\((?P<rest>.*)$", re.MULTILINE)


class CompiledText:
    """The instructions in the text of a compiled program, by computation."""

    def __init__(self, hlo: str):
        self.computations = {
            m["name"]: [(i["kind"], i["rest"]) for i in _INSTRUCTION.finditer(m["body"])]
            for m in _COMPUTATION.finditer(hlo)
        }

    def executed(self, name: str) -> int:
        """How many instructions one call of a computation runs, where a fused computation is one."""
        total = 0
        for kind, rest in self.computations[name]:
            if kind == "while":
                total += (_trips(rest) or 1) * self.executed(_callee("body", rest))
            elif kind == "call":
                total += self.executed(_callee("to_apply", rest))
            elif kind not in FREE:
                total += 1
        return total

    def loop_body(self, trips: int) -> str:
        """The body of the only loop of `trips` iterations."""
        loops = [rest for found in self.computations.values() for kind, rest in found if kind == "while"]
        (body,) = [_callee("body", rest) for rest in loops if _trips(rest) == trips]
        return body


def _callee(role: str, rest: str) -> str:
    return re.search(rf"\b{role}=%?([\w.-]+)", rest)[1]


def _trips(rest: str) -> int | None:
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
    return int(found[1]) if found else None


# Each costs about 1.7 us on a CPU, which is most of the time of a small task. Lower the bound when there are fewer.
INSTRUCTIONS_PER_INNER_STEP = 380


def test_an_inner_step_of_PES_runs_few_instructions():
    window = 47
    task = loc.tasks.mlp_classification(loc.data.digits(), width=32, depth=1, batch_size=64)
    unroll = loc.unroll.TruncatedUnroll(task, loc.unroll.LogUniformHorizon(100, 1000), window)
    estimator = loc.estimators.PES(unroll, num_pairs=8)
    learner = loc.recipes.small_fc_lopt(hidden_size=4, key=jax.random.key(0))
    shapes, rest = eqx.partition(
        eqx.filter_eval_shape(estimator.init, learner, key=jax.random.key(1)),
        lambda x: isinstance(x, jax.ShapeDtypeStruct),
    )

    def estimate(arrays, key):
        return estimator.estimate(learner, eqx.combine(arrays, rest), key=key)[0].grad

    # The level is that of the code generator, which has most of the work; instructions are fused as always.
    options = {"xla_backend_optimization_level": 0}
    hlo = CompiledText(jax.jit(estimate).lower(shapes, jax.random.key(2)).compile(options).as_text())
    executed = hlo.executed(hlo.loop_body(window))
    assert 50 < executed <= INSTRUCTIONS_PER_INNER_STEP
