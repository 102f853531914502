"""What the suite runs: an optimizer with its grid of learning rates, and the three baselines."""

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import lo_components as loc
from lo_components.optimizers import StepContext
from lo_components.parametrization import ORTHOGONALIZED, SCALE_FREE, RuleByRank

from .tasks import Growth

Learner = loc.optimizers.AbstractOptimizer | optax.GradientTransformation
Rate = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer in the suite.

    **Arguments:**

    - `name`: its name in tables.
    - `make`: maps a learning rate (a float32 array) and the number of steps to an optimizer or an optax transformation.
    - `rates`: the learning rates to try, in increasing order. The grid is widened while its edge is best. A single one
        is not tuned.
    - `growth`: the parametrization of the models that it trains, the standard one by default.
    """

    name: str
    make: Callable[[Rate, int], Learner]
    rates: tuple[float, ...] = (1.0,)
    growth: Growth = Growth()

    @staticmethod
    def of(
        x: "Optimizer | Learner | Callable[[Rate, int], Learner]", name: str, rates: tuple[float, ...], growth: Growth
    ) -> "Optimizer":
        """`x` itself if it is an `Optimizer`; else one that is ready, or a function as `make` is, by its name."""
        if isinstance(x, Optimizer):
            return x
        ready = hasattr(x, "init")  # an optimizer or a transformation, which no learning rate changes
        make = (lambda rate, horizon: cast(Learner, x)) if ready else cast(Callable[[Rate, int], Learner], x)
        return Optimizer(name, make, rates, growth)

    @staticmethod
    def named(text: str, rates: tuple[float, ...], growth: Growth) -> "Optimizer":
        """The optimizer in a file of `lo_components.weights.save`, or that of `module:name`."""
        if Path(text).is_file():
            return Optimizer.of(loc.weights.load(text), Path(text).stem, rates, growth)
        module, _, name = text.partition(":")
        return Optimizer.of(getattr(importlib.import_module(module), name), name, rates, growth)

    def learner(self, rate: float, horizon: int) -> loc.optimizers.AbstractOptimizer:
        """The optimizer for a learning rate and a number of steps."""
        return loc.optimizers.as_optimizer(self.make(jnp.float32(rate), horizon))

    def fingerprint(self, rate: float, horizon: int) -> str:
        """A hash of what the optimizer computes and of its arrays: equal in another process, for the same version of
        jax and of the code.
        """
        learner = self.learner(rate, horizon)
        params = {"matrix": jnp.ones((3, 2)), "vector": jnp.ones(3), "kernel": jnp.ones((3, 2, 3, 3))}

        def two_steps(grads, loss):
            context = StepContext(loss=loss, num_steps=horizon)
            _, state = learner.update(grads, learner.init(params), params, context=context)
            return learner.update(grads, state, params, context=context)[0]

        with jax.numpy_dtype_promotion("standard"):
            program = jax.make_jaxpr(two_steps)(params, jnp.float32(1.0))
        digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(program.jaxpr)).encode())
        for constant in program.consts:
            digest.update(np.asarray(constant).tobytes())
        return digest.hexdigest()


def warm_up_and_cosine(rate: Rate, horizon: int) -> optax.Schedule:
    """A linear warm-up over the first 5 % of the steps, then half a cosine down to 0."""
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, horizon // 20), horizon)
    return lambda step: rate * unit(step)


def _adamw(rate: Rate, horizon: int) -> optax.GradientTransformation:
    return optax.adamw(warm_up_and_cosine(rate, horizon))


def _muon(rate: Rate, horizon: int) -> optax.GradientTransformation:
    return optax.contrib.muon(
        warm_up_and_cosine(rate, horizon),
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _matrices(params: Any) -> Any:
    """Layers of this library are `[out, in, ...]`; kernels of convolutions count as matrices of all their inputs."""
    return jax.tree.map(
        lambda p: None if p.ndim < 2 else optax.contrib.MuonDimensionNumbers(tuple(range(1, p.ndim)), 0), params
    )


def adam(rate: Rate, horizon: int) -> loc.OptaxOptimizer:
    """Adam at a constant learning rate."""
    return loc.OptaxOptimizer(optax.adam, rate)


def adamw(rate: Rate, horizon: int) -> loc.OptaxOptimizer:
    """AdamW with warm-up and cosine, and optax's weight decay of 1e-4."""
    return loc.OptaxOptimizer(_adamw, rate, horizon, update_rule=SCALE_FREE)


def muon(rate: Rate, horizon: int) -> loc.OptaxOptimizer:
    """Muon with warm-up and cosine for all matrices and kernels, scaled to the size of Adam's updates; Adam for others.

    The factor 0.2 sqrt(max(in, out)) of Liu et al. (arXiv 2502.16982) lets both parts have the same learning rate.
    """
    return loc.OptaxOptimizer(_muon, rate, horizon, update_rule=RuleByRank(matrices=ORTHOGONALIZED, vectors=SCALE_FREE))


BASELINES = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("adam", adam, (1e-3, 3e-3, 1e-2)),
        Optimizer("adamw", adamw, (1e-3, 3e-3, 1e-2)),
        Optimizer("muon", muon, (3e-3, 1e-2, 3e-2)),
    )
}
REFERENCE = "adamw"
