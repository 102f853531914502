import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

StatT = TypeVar("StatT")

# How to pass the optional inputs.
_WAYS = {
    "num_steps": "pass `StepContext(num_steps=...)` to `update`, or `num_steps=...` to that of an optax transformation",
    "loss": "pass `StepContext(loss=...)` to `update`, or `value=...` to that of an optax transformation",
    "controls": "use it in a `ControlledOptimizer`, which has a controller",
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
    - `controls`: what a controller says about the tensor, if there is one.
    - `size`: the number of elements of the tensor, by which means are divided. It differs from that of `param` if the
        view shows a block of the tensor only; `None` for the size of `param`.
    - `counted`: which elements count in sums; `None` for all. The others are padding, or belong to another block.
    """

    param: Float[Array, "*shape"]
    grad: Float[Array, "*shape"]
    stats: tuple[Any, ...]
    step: Int[Array, ""]
    num_steps: Int[Array, ""] | None = None
    loss: Float[Array, ""] | None = None
    deltas: Float[Array, "workers *shape"] | None = None
    controls: Float[Array, " k"] | None = None
    size: int | Int[Array, ""] | None = None
    counted: Bool[Array, "*#shape"] | None = None

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

        - `name`: `"num_steps"`, `"loss"`, `"deltas"` or `"controls"`.

        Raises `ValueError` if it is not known, and says how to pass it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"A part of the pipeline needs `{name}`, which is not known: {_WAYS[name]}.")
        return value

    def means(self, values: Float[Array, "c *#shape"]) -> Float[Array, " c"]:
        """The mean over the tensor of each channel, without padding; 0 for an empty tensor.

        The view must show the whole tensor.

        **Arguments:**

        - `values`: the channels.
        """
        values = jnp.broadcast_to(values, (values.shape[0], *self.param.shape))
        values = values if self.counted is None else jnp.where(self.counted[None], values, 0.0)
        return jnp.sum(values, axis=tuple(range(1, values.ndim))) / self._num_elements()

    def _num_elements(self) -> Float[Array, ""]:
        return jnp.maximum(1.0, jnp.asarray(self.param.size if self.size is None else self.size, jnp.float32))

    def mean_squares(self, groups: Sequence[Float[Array, "_ ..."]]) -> list[Float[Array, " _"]]:
        """The mean square over the tensor of each channel; if the view shows a block, its part of that mean.

        **Arguments:**

        - `groups`: the channels, in arrays that are constant along axes of size 1.
        """
        sums, repeats = zip(*map(self._square_sums, groups), strict=True)
        counts = [x.shape[0] for x in groups]
        # One division for all channels: each operation on a few numbers costs as much as on many.
        weights = np.repeat(np.asarray(repeats, np.float32), counts) / self._num_elements()
        return jnp.split(jnp.concatenate(sums) * weights, np.cumsum(counts)[:-1])

    def _square_sums(self, values: Float[Array, "c *#shape"]) -> tuple[Float[Array, " c"], int]:
        """The sum of squares of each channel, and the number of elements that each term stands for."""
        axes = tuple(range(1, values.ndim))
        constant = tuple(axis - 1 for axis in axes if values.shape[axis] == 1)
        squares = values * values
        if self.counted is None:
            return jnp.sum(squares, axis=axes), math.prod(self.param.shape[axis] for axis in constant)
        counts = jnp.broadcast_to(self.counted, self.param.shape).astype(jnp.float32)
        counts = jnp.sum(counts, axis=constant, keepdims=True)[None]
        return jnp.sum(jnp.where(counts > 0, squares, 0.0) * counts, axis=axes), 1

    def tensors(self) -> list[Float[Array, "_ ..."]]:
        """The arrays that have the axes of the tensor, each with a leading axis."""
        deltas = [] if self.deltas is None else [self.deltas]
        return [self.param[None], self.grad[None], *filter(self._has_axes, jax.tree.leaves(self.stats)), *deltas]

    def with_tensors(self, tensors: Sequence[Float[Array, "_ ..."]]) -> "TensorView":
        """The view with other arrays in place of those of `tensors`.

        **Arguments:**

        - `tensors`: in the order of `tensors()`; all shapes may differ from those, for instance to show a block.
        """
        arrays = iter(tensors)
        return dataclasses.replace(
            self,
            param=next(arrays)[0],
            grad=next(arrays)[0],
            stats=jax.tree.map(lambda x: next(arrays) if self._has_axes(x) else x, self.stats),
            deltas=None if self.deltas is None else next(arrays),
            size=self.param.size if self.size is None else self.size,
        )

    def _has_axes(self, x: Array) -> bool:
        return x.ndim == 1 + self.param.ndim
