from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

StatT = TypeVar("StatT")

# How to pass the optional inputs.
_WAYS = {
    "num_steps": "pass `StepContext(num_steps=...)` to `update`, or `num_steps=...` to that of an optax transformation",
    "loss": "pass `StepContext(loss=...)` to `update`, or `value=...` to that of an optax transformation",
    "deltas": "use it in a `LearnedAggregator`, whose workers send deltas, not in an optimizer",
}


class TensorView(eqx.Module):
    """What accumulators, features and step rules can see of one tensor at one step. All arrays are float32.

    **Arguments:**

    - `param`: the parameter before this step, `[*shape]` with at least one axis.
    - `grad`: its gradient, `[*shape]`; for aggregators its pseudo-gradient, the mean of the workers' deltas.
    - `stats`: one statistic per accumulator, which includes this step's gradient; each array is `[c, *#shape]`, or
        `[c]` for the tensor as a whole. Accumulators themselves see no statistics.
    - `step`: the number of steps taken before this one; 0 at the first step.
    - `num_steps`: the length of training, if known.
    - `loss`: this step's loss, if known.
    - `deltas`: for aggregators, each worker's new parameter minus the old one, `[workers, *shape]`.
    """

    param: Float[Array, "*shape"]
    grad: Float[Array, "*shape"]
    stats: tuple[Any, ...]
    step: Int[Array, ""]
    num_steps: Int[Array, ""] | None = None
    loss: Float[Array, ""] | None = None
    deltas: Float[Array, "workers *shape"] | None = None

    def stat(self, kind: type[StatT]) -> StatT:
        """The statistic of type `kind`. It is looked up while tracing, which costs nothing at run time.

        Raises `ValueError` if no accumulator produces it.
        """
        for stat in self.stats:
            if isinstance(stat, kind):
                return stat
        available = ", ".join(type(s).__name__ for s in self.stats) or "none"
        raise ValueError(f"No accumulator produces `{kind.__name__}`; available statistics: {available}.")

    def spread(self, values: Float[Array, " c"]) -> Float[Array, "c *ones"]:
        """The `values`, which belong to the tensor as a whole, with an axis of size 1 for each axis of the tensor."""
        return values.reshape((-1,) + (1,) * self.param.ndim)

    def required(self, name: str) -> Array:
        """An optional input, for parts that cannot do without it.

        **Arguments:**

        - `name`: `"num_steps"`, `"loss"` or `"deltas"`.

        Raises `ValueError` if it is not known, and says how to pass it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"A part of the pipeline needs `{name}`, which is not known: {_WAYS[name]}.")
        return value

    def rows(self, start: Int[Array, ""], size: int) -> "TensorView":
        """The view of rows `start : start + size` (first axis) of the tensor. Axes of size 1 stay as they are."""
        total = self.param.shape[0]

        def take(x, axis: int):
            if x is None or x.ndim <= axis or x.shape[axis] != total or total == 1:
                return x
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        return TensorView(
            param=take(self.param, 0),
            grad=take(self.grad, 0),
            stats=jax.tree.map(lambda x: take(x, 1), self.stats),
            step=self.step,
            num_steps=self.num_steps,
            loss=self.loss,
            deltas=take(self.deltas, 1),
        )
