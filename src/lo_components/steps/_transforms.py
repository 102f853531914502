import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..accumulators import TensorView
from ..parametrization import ORTHOGONALIZED, ORTHOGONALIZED_RMS, RELATIVE, SCALE_FREE, UpdateRule


class AbstractTransform(eqx.Module):
    """Changes the update of a whole tensor after the step rule, which may have been evaluated in blocks.

    `padding` says whether the result is right for vectors that are padded with zeros, so that vectors of several
    lengths can be computed together: elementwise, or with means of `view.means`. It is false by default.
    """

    padding: ClassVar[bool] = False

    @abc.abstractmethod
    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        """The rule by which the size of the transformed update depends on gradient and parameter.

        **Arguments:**

        - `rule`: how that of the update before the transform does.
        - `ndim`: the number of axes of the tensor.
        """

    @abc.abstractmethod
    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        """The transformed `update` of the tensor that `view` shows."""


class RelativeToParameter(AbstractTransform):
    r"""Multiplies the update by the root mean square of the parameter: $\Delta p \sqrt{\mathrm{mean}(p^2) + \epsilon}$.

    **Arguments:**

    - `eps`: $\epsilon$, so that a parameter of zeros moves.

    ??? cite "Source"
        VeLO (arXiv 2211.09760) and Celo (arXiv 2501.12670).
    """

    padding: ClassVar[bool] = True
    eps: float = eqx.field(default=1e-9, static=True)

    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        return RELATIVE

    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        (mean_square,) = view.mean_squares([view.param[None]])
        return update * jnp.sqrt(mean_square[0] + self.eps)


class TimesLastControl(AbstractTransform):
    """Multiplies the update by the last of the tensor's controls: a learning rate of either sign."""

    padding: ClassVar[bool] = True

    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        return rule

    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        return update * view.required("controls")[-1]


class RMSOne(AbstractTransform):
    r"""Divides the update by its root mean square over the last two axes, $\Delta p\, (\mathrm{mean}(\Delta p^2) +
    \epsilon)^{-1/2}$. An update of zeros stays zero.

    **Arguments:**

    - `eps`: $\epsilon$.

    ??? cite "Source"
        Celo2 (arXiv 2602.19142).
    """

    padding: ClassVar[bool] = True
    eps: float = eqx.field(default=1e-9, static=True)

    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        return ORTHOGONALIZED_RMS if rule == ORTHOGONALIZED else SCALE_FREE

    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        if view.size is not None:  # a vector with padding
            mean_square = view.mean_squares([update[None]])[0][0]
        else:
            mean_square = jnp.mean(jnp.square(update), axis=tuple(range(-min(2, update.ndim), 0)), keepdims=True)
        return update * jax.lax.rsqrt(mean_square + self.eps)


class Orthogonalized(AbstractTransform):
    r"""Moves the singular values of the update, a matrix, close to one, by Newton-Schulz iterations, as Muon does.

    With $X$ the update divided by its Frobenius norm, five times: $A = X X^\top$,
    $X \leftarrow 3.4445\,X + (-4.775\,A + 2.0315\,A^2)\,X$. Singular values end up between about 0.7 and 1.2. Vectors
    and scalars are left as they are. In tensors of higher rank each pair of `axes` is a matrix: for kernels in
    Equinox's layout, `[out, in, height, width]`, pass `axes=(0, 1)`, without `RMSOne`, which normalizes over the last
    two axes.

    **Arguments:**

    - `axes`: the axes of a matrix.
    - `iterations`: how many.
    - `eps`: added to the norm.

    ??? cite "Source"
        Jordan et al., *Muon* (2024); Celo2 (arXiv 2602.19142).
    """

    padding: ClassVar[bool] = True
    axes: tuple[int, int] = eqx.field(default=(-2, -1), static=True)
    iterations: int = eqx.field(default=5, static=True)
    eps: float = eqx.field(default=1e-8, static=True)

    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        return rule if ndim < 2 else ORTHOGONALIZED

    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        if update.ndim < 2:
            return update
        x = jnp.moveaxis(update, self.axes, (-2, -1))
        tall = x.shape[-2] > x.shape[-1]
        x = jnp.swapaxes(x, -1, -2) if tall else x
        x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + self.eps)
        for _ in range(self.iterations):
            a = x @ jnp.swapaxes(x, -1, -2)
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return jnp.moveaxis(jnp.swapaxes(x, -1, -2) if tall else x, (-2, -1), self.axes)


class Flattened(AbstractTransform):
    """Other transforms of tensors of rank 3 and more, which they see as matrices: one axis against all others.

    With `Flattened((Orthogonalized(), RMSOne()))` a kernel `[out, in, height, width]` is a matrix `[out, in * height *
    width]`, as in Muon. Vectors and matrices are transformed as they are.

    **Arguments:**

    - `transforms`: the other transforms, one after the other; they must not read tensors from the view.
    - `axis`: the axis of the outputs: the first in Equinox, the last in Flax.
    """

    transforms: tuple[AbstractTransform, ...]
    axis: int = eqx.field(default=0, static=True)

    @property
    def padding(self) -> bool:
        return all(transform.padding for transform in self.transforms)

    def update_rule(self, rule: UpdateRule, ndim: int) -> UpdateRule:
        for transform in self.transforms:
            rule = transform.update_rule(rule, min(ndim, 2))
        return rule

    def __call__(self, update: Float[Array, "*shape"], view: TensorView) -> Float[Array, "*shape"]:
        x = update if update.ndim <= 2 else jnp.moveaxis(update, self.axis, 0)
        shape = x.shape
        x = x if update.ndim <= 2 else x.reshape(shape[0], -1)
        for transform in self.transforms:
            x = transform(x, view)
        return x if update.ndim <= 2 else jnp.moveaxis(x.reshape(shape), 0, self.axis)
