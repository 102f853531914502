"""The values that a function names with `jax.ad_checkpoint.checkpoint_name`, found in its jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array


def named_values(fn: Callable, *args) -> dict[str, Array]:
    """Every value that `fn(*args)` names, flattened, in the order of their computation.

    Values named inside `jax.vmap`, `jax.jit`, `jax.checkpoint` and `jax.lax.scan` are found with all their copies. If
    several values have the same name, they are concatenated.
    """
    closed = jax.make_jaxpr(fn)(*args)
    _, found = _run(closed, jax.tree.leaves(args))
    return {name: jnp.concatenate([jnp.ravel(x) for x in values]) for name, values in found.items()}


def _run(closed, args) -> tuple[list, dict[str, list]]:
    """The outputs of a closed jaxpr, and the values that it names."""
    jaxpr = closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    found: dict[str, list] = {}

    def read(var):
        return var.val if isinstance(var, core.Literal) else env[var]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        inner = _inner(closed, eqn) if _names_something(eqn) else None
        if eqn.primitive.name == "name":
            outputs, more = inputs, {eqn.params["name"]: inputs}
        elif eqn.primitive.name == "scan" and inner is not None:
            outputs, more = _scan(eqn, inner, inputs)
        elif inner is not None:
            outputs, more = _run(inner, inputs)
        else:
            outputs, more = _evaluated(closed, eqn, inputs), {}
        env.update(zip(eqn.outvars, outputs, strict=True))
        for name, values in more.items():
            found.setdefault(name, []).extend(values)
    return [read(v) for v in jaxpr.outvars], found


def _evaluated(closed, eqn, inputs) -> list:
    """The outputs of one equation of a jaxpr."""
    variables = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if not isinstance(v, core.Literal)}
    alone = closed.jaxpr.replace(constvars=[], invars=list(variables), outvars=eqn.outvars, eqns=[eqn])
    return core.jaxpr_as_fun(closed.replace(jaxpr=alone, consts=[]))(*variables.values())


def _scan(eqn, inner, inputs) -> tuple[list, dict[str, list]]:
    # Constants and the carry have the same rank inside the scan; arrays that are scanned over have one axis less.
    num_carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, inner.jaxpr.outvars, strict=True))
    num_same = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, inner.jaxpr.invars, strict=True))
    num_consts = num_same - num_carry
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def body(carry, x):
        outputs, found = _run(inner, [*consts, *carry, *x])
        return outputs[:num_carry], (outputs[num_carry:], found)

    carry, (ys, found) = jax.lax.scan(body, carry, xs, eqn.params["length"], eqn.params["reverse"])
    return [*carry, *ys], found


def _inner(closed, eqn) -> Any:
    """The jaxpr that an equation evaluates once (a scan: in every iteration), with its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if isinstance(inner, core.Jaxpr):
            return closed.replace(jaxpr=inner, consts=[])
        if isinstance(inner, type(closed)):
            return inner
    raise NotImplementedError(
        f"A value is named inside `{eqn.primitive.name}`, where it cannot be read; name it outside."
    )


def _names_something(eqn) -> bool:
    if eqn.primitive.name == "name":
        return False
    return any(
        e.primitive.name == "name" or _names_something(e)
        for value in eqn.params.values()
        for jaxpr in (value if isinstance(value, tuple | list) else [value])
        for e in _equations(jaxpr)
    )


def _equations(value) -> list:
    jaxpr = getattr(value, "jaxpr", value)
    return list(jaxpr.eqns) if isinstance(jaxpr, core.Jaxpr) else []
