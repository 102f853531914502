import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import typechecked
from ..tasks import AbstractTask
from ..unroll import AbstractInnerStep, GradientStep
from ._arguments import checked
from ._evaluate import Trainer, as_learner, observed_training, other_key
from ._named_values import named_values


class Exponent(NamedTuple):
    r"""The slope of $\log$ change over $\log$ width.

    **Arguments:**

    - `value`: the mean of the slopes of all seeds.
    - `error`: its standard error; NaN for a single seed.
    """

    value: float
    error: float


class CoordinateCheck(eqx.Module):
    """How much each layer's pre-activations change in the first steps, at several widths.

    **Arguments:**

    - `widths`: the widths of the networks that were trained.
    - `layers`: names of the layers, sorted.
    - `changes`: root mean square, over units and examples, of the change since initialization, after each step.
    """

    widths: tuple[int, ...] = eqx.field(static=True)
    layers: tuple[str, ...] = eqx.field(static=True)
    changes: Float[np.ndarray, "widths seeds steps layers"]

    def exponents(self, step: int = -1) -> dict[str, Exponent | None]:
        r"""The fitted exponent of every layer after a step: 0 if the change does not depend on the width.

        Infinity if a change is not finite. `None` if a change is exactly zero at some width, for instance that of a
        readout whose weights start at zero: such layers have no exponent.

        **Arguments:**

        - `step`: an index into the steps; the last by default.
        """
        found: dict[str, Exponent | None] = {}
        for i, layer in enumerate(self.layers):
            changes = self.changes[:, :, step, i]
            if not np.isfinite(changes).all():
                found[layer] = Exponent(np.inf, np.nan)
                continue
            if not (changes > 0).all():
                found[layer] = None
                continue
            slopes = np.polyfit(np.log(self.widths), np.log(changes), 1)[0]
            error = np.std(slopes, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
            found[layer] = Exponent(float(np.mean(slopes)), float(error))
        return found

    def largest(self, step: int = -1) -> float:
        """The largest exponent over layers, as in `exponents(step)`: well above 0 if wide networks blow up."""
        return max((e.value for e in self.exponents(step).values() if e is not None), default=math.nan)

    def smallest(self, step: int = -1) -> float:
        """The smallest exponent over layers, as in `exponents(step)`: well below 0 if layers stop learning."""
        return min((e.value for e in self.exponents(step).values() if e is not None), default=math.nan)

    def table(self, step: int = -1) -> str:
        """A table of the exponents, as in `exponents(step)`, and of the changes per width, with one line per layer."""
        length = max(map(len, self.layers))
        lines = [f"{'layer':<{length}}  exponent         " + "".join(f"{w:>10}" for w in self.widths)]
        means = np.mean(self.changes[:, :, step], axis=1)
        for i, (layer, exponent) in enumerate(self.exponents(step).items()):
            fit = "   none        " if exponent is None else f"{exponent.value:>7.3f} ± {exponent.error:.3f}"
            lines.append(f"{layer:<{length}}  {fit}  " + "".join(f"{x:>10.2e}" for x in means[:, i]))
        return "\n".join(lines)


@checked
@typechecked
def coordinate_check(
    learner: Trainer,
    task: Callable[[int], AbstractTask],
    *,
    widths: Sequence[int],
    num_steps: int = 5,
    num_seeds: int = 3,
    inner_step: AbstractInnerStep = GradientStep(),
    key: PRNGKeyArray,
) -> CoordinateCheck:
    r"""Train networks of several widths for a few steps and record how much each layer's pre-activations change.

    Under muP the change does not depend on the width, in any layer and at any step: the fitted exponents are near 0.
    An exponent well above 0 means that wide networks blow up at this learning rate. An exponent well below 0 means that
    the layer stops learning in wide networks.

    Pre-activations are found by name: [`lo_components.nn.named_layers`][] names the outputs of all layers, and the
    tasks of this package call it. In your own task, call it too, or name values with
    `jax.ad_checkpoint.checkpoint_name`.

    **Arguments:**

    - `learner`: any optimizer or optax transformation, or any aggregator with a
        [`lo_components.unroll.LocalRound`][].
    - `task`: maps a width to the task, whose update scales are applied to the updates.
    - `widths`: at least two.
    - `num_steps`: steps (or rounds) to train, on fresh batches. Changes are measured on one fixed batch.
    - `num_seeds`: independent initializations, for the error of the exponents.
    - `inner_step`: one step of inner training.
    - `key`: for initial parameters and batches.

    **Returns:** the changes, with exponents and a table.

    Raises `ValueError` if there are fewer than two widths, if `num_steps` or `num_seeds` is below 1, if no value is
    named, or if the networks do not have the same named values; `TypeError` if `inner_step` does not take this kind of
    learner.

    ??? cite "Source"
        Yang et al., *Tensor Programs V* (arXiv 2203.03466), appendix D.1; muLO (arXiv 2406.00153), figure 1.
    """
    if len(widths) < 2 or len(set(widths)) < len(widths):
        raise ValueError(f"`widths` must be at least two different widths, got {tuple(widths)}.")
    if num_steps < 1 or num_seeds < 1:
        raise ValueError(f"`num_steps` and `num_seeds` must be at least 1, got {num_steps} and {num_seeds}.")
    layers: tuple[str, ...] | None = None
    changes = []
    for width in widths:
        found = _changes(as_learner(learner), task(width), num_steps, inner_step, num_seeds, key)
        names = tuple(found)
        if layers is not None and names != layers:
            raise ValueError(f"`task` has other layers at width {width} than at {widths[0]}: {names}, {layers}.")
        if not names:
            raise ValueError(
                "`task` has no named values: call `lo_components.nn.named_layers` on its model, or name "
                "pre-activations with `jax.ad_checkpoint.checkpoint_name`."
            )
        layers = names
        changes.append(np.stack([np.asarray(found[name], np.float64) for name in names], axis=-1))
    return CoordinateCheck(tuple(widths), layers or (), np.stack(changes))


@eqx.filter_jit
def _changes(learner, task, num_steps, inner_step, num_seeds, key) -> dict[str, Float[Array, "seeds steps"]]:
    def run(index):
        seed_key = jax.random.fold_in(key, index)
        probe_key, loss_key = jax.random.split(other_key(seed_key))
        probe = task.batch(key=probe_key)

        def values(t, loss, before, after, state):
            return named_values(lambda p: task.loss(p, probe, key=loss_key), before)

        # One more step, so that one program computes initial and later values: rounding must not look like a change.
        found = observed_training(learner, task, num_steps + 1, inner_step, values, key=seed_key)
        changes = jax.tree.map(lambda x: x[1:].astype(jnp.float32) - x[:1].astype(jnp.float32), found)
        return jax.tree.map(lambda change: jnp.sqrt(jnp.mean(jnp.square(change), axis=1)), changes)

    return jax.lax.map(run, jnp.arange(num_seeds))
