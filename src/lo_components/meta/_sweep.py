import collections
import hashlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params
from jaxtyping import Array, Float, PyTree

from .._tree import path_name
from .._types import typechecked
from ._evaluate import Evaluation


class Best(eqx.Module):
    """The best configuration of a sweep.

    **Arguments:**

    - `index`: its index in the sweep.
    - `configuration`: its hyperparameters, in the structure of the grid.
    - `evaluation`: its training curves.
    - `score`: its mean score over seeds.
    - `at_edge`: the hyperparameters whose best value is the lowest or the highest of the grid, so a wider grid may
        have a better one. They are given by path, for instance `rate`; a grid that is a single array is called `grid`.
    """

    index: int = eqx.field(static=True)
    configuration: PyTree[Array]
    evaluation: Evaluation
    score: float = eqx.field(static=True)
    at_edge: tuple[str, ...] = eqx.field(static=True)


class Sweep(eqx.Module):
    """Training curves for every configuration of a grid.

    **Arguments:**

    - `grid`: one array `[configurations]` per hyperparameter.
    - `evaluations`: an [`lo_components.meta.Evaluation`][] whose arrays have a leading axis of configurations.
    """

    grid: PyTree[Array]
    evaluations: Evaluation

    def best(self, score: Callable[[Evaluation], Float[Array, "configurations seeds"]] = Evaluation.final) -> Best:
        """The configuration with the lowest mean score over seeds. A score that is not finite ranks last.

        **Arguments:**

        - `score`: maps `evaluations` to one number per configuration and seed; by default the mean loss of the last 20
            steps. For the best test accuracy, `lambda e: -e.metrics["test"]["accuracy"][..., -1]`.

        Raises `ValueError` if no configuration has a finite score, or scores have another shape.
        """
        scores = np.asarray(score(self.evaluations), np.float64)
        expected = self.evaluations.losses.shape[:-1]
        if scores.ndim != 2 or scores.shape[0] != expected[0]:
            raise ValueError(f"`score` must return `[configurations, seeds]`, such as {expected}, got {scores.shape}.")
        means = np.mean(scores, axis=-1)
        means = np.where(np.isfinite(means), means, np.inf)
        index = int(np.argmin(means))
        if not np.isfinite(means[index]):
            raise ValueError("No configuration of the sweep has a finite score for every seed; change the grid.")
        chosen, evaluation = (jax.tree.map(lambda x: x[index], tree) for tree in (self.grid, self.evaluations))
        at_edge = tuple(
            path_name(path) or "grid"
            for path, values in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, self.grid))
            if values.min() < values.max() and values[index] in (values.min(), values.max())
        )
        return Best(index, chosen, evaluation, float(means[index]), at_edge)


@typechecked
def sweep(run: Callable[[Any], Evaluation], grid: PyTree, *, at_once: int | None = None) -> Sweep:
    """Evaluate every configuration of a grid of hyperparameters, in one compiled call.

    A second sweep of the same size compiles again only if it computes something else: other values, or a data set or a
    task of equal shapes, do not count. The last 16 programs are kept, except those that call back into Python, such as
    by `jax.pure_callback`.

    Hyperparameters are traced, so the learner, the inner step or the task must accept them as arrays, and they cannot
    change shapes.

    **Arguments:**

    - `run`: maps one configuration, a pytree of scalars, to its [`lo_components.meta.evaluate`][].
    - `grid`: the configurations: a pytree of arrays `[configurations]`, for instance a dictionary by name. For the
        product of several axes, `jnp.meshgrid` and `jnp.ravel`.
    - `at_once`: how many configurations to run in parallel; `None`: all of them. Fewer need less memory.

    **Returns:** the grid and its curves; `.best()` chooses among them.

    Raises `ValueError` if the arrays of `grid` are not vectors of one length, or if `at_once` is below 1.

    **Example:**

    ```pycon
    >>> task, key = loc.tasks.Quadratic(start=jnp.ones(4)), jax.random.key(0)
    >>> sgd = lambda rate: loc.meta.evaluate(loc.OptaxOptimizer(optax.sgd, rate), task, num_steps=20, key=key)
    >>> best = loc.meta.sweep(sgd, jnp.array([0.01, 0.1, 3.0])).best()
    >>> print(best.configuration)
    0.1
    ```
    """
    grid = jax.tree.map(jnp.asarray, grid)
    shapes = {x.shape for x in jax.tree.leaves(grid)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or (0,) in shapes:
        raise ValueError(f"`grid` must have vectors of one length, got shapes {sorted(shapes)}.")
    ((size,),) = shapes
    if at_once is not None and at_once < 1:
        raise ValueError(f"`at_once` must be at least 1, got {at_once}.")
    # Arrays that `run` closes over, such as a data set, become arguments of the compiled program instead of constants.
    traced, arrays, rest = eqx.filter_make_jaxpr(run)(jax.tree.map(lambda x: x[0], grid))
    arguments = traced.consts, jax.tree.leaves(grid)
    found = _program(traced.jaxpr, size if at_once is None else at_once, arguments)(*arguments)
    return Sweep(grid, eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), found), rest))


# Those that were used last, in this order.
_programs: collections.OrderedDict[bytes, Callable] = collections.OrderedDict()
_MOST_PROGRAMS = 16


def _program(jaxpr: Jaxpr, at_once: int, arguments: tuple) -> Callable:
    """The function that runs every configuration: the one that an earlier sweep compiled, if it computes the same.

    `run` is usually a new function in each call, so programs are compared by their text.
    """

    def _sweep(consts, grid):
        def run(configuration):
            return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*configuration)

        return jax.lax.map(run, grid, batch_size=at_once)

    # Without unused arguments, programs that read different arrays could have the same text.
    new = jax.jit(_sweep, keep_unused=True)
    if _calls_python(jaxpr):
        return new  # the text does not tell which function is called
    key = hashlib.sha256(new.lower(*arguments).as_text().encode()).digest()
    program = _programs.setdefault(key, new)
    _programs.move_to_end(key)
    if len(_programs) > _MOST_PROGRAMS:
        _programs.popitem(last=False)
    return program


def _calls_python(jaxpr: Jaxpr) -> bool:
    """Whether the program calls back into Python, such as `jax.pure_callback` does."""
    return bool(jaxpr.effects) or any(
        "callback" in equation.primitive.name or any(map(_calls_python, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
