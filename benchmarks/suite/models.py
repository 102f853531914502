"""Models of the suite that the library does not have, made of its layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

import lo_components as loc
from lo_components.parametrization import AbstractParametrization, Axis


class NormalizedMLP(eqx.Module):
    """An MLP with layer normalization before each ReLU."""

    layers: tuple[loc.nn.Linear, ...]
    norms: tuple[loc.nn.LayerNorm, ...]

    def __init__(
        self,
        in_size: Axis,
        out_size: int,
        *,
        width: int,
        depth: int,
        parametrization: AbstractParametrization,
        base_width: int | None,
        key: PRNGKeyArray,
    ):
        hidden = Axis.growing(width, base_width)
        sizes = [in_size, *[hidden] * depth, out_size]
        keys = jax.random.split(key, depth + 1)
        self.layers = tuple(
            loc.nn.Linear(n, m, parametrization=parametrization, key=k)
            for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.norms = tuple(loc.nn.LayerNorm(hidden) for _ in range(depth))

    def __call__(self, x: Float[Array, "*image"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        x = jnp.ravel(x)
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = jax.nn.relu(norm(layer(x)))
        return self.layers[-1](x)


class Autoencoder(eqx.Module):
    """Pixels, a hidden layer, a code of a quarter of its size, a hidden layer, and pixels in [0, 1] by a sigmoid."""

    layers: tuple[loc.nn.Linear, ...]

    def __init__(
        self,
        in_size: Axis,
        *,
        width: int,
        parametrization: AbstractParametrization,
        base_width: int | None,
        key: PRNGKeyArray,
    ):
        code = Axis.growing(width // 4, base_width and base_width // 4)
        sizes = [in_size, code.times(4), code, code.times(4), in_size.size]
        self.layers = tuple(
            loc.nn.Linear(n, m, parametrization=parametrization, key=k)
            for n, m, k in zip(sizes[:-1], sizes[1:], jax.random.split(key, 4), strict=True)
        )

    def __call__(self, x: Float[Array, "*image"], *, key: PRNGKeyArray | None = None) -> Float[Array, " pixels"]:
        x = jnp.ravel(x)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return jax.nn.sigmoid(self.layers[-1](x))


class Autoencoding(loc.tasks.AbstractTaskWrapper, loc.tasks.AbstractMeasuredTask):
    """Reconstruct images: the mean squared error over pixels and images, of the model of an image task."""

    task: loc.tasks.ImageClassification

    def loss(self, params, batch, *, key):
        images, _ = batch
        outputs = jax.vmap(self.task.model(params))(images)
        return jnp.mean(jnp.square(images.reshape(outputs.shape) - outputs))

    def metrics(self, params, *, split, key):
        dataset = self.task.dataset
        count = dataset.splits[split].labels.shape[0]
        batch = loc.data.take_batch(dataset, jnp.arange(count), split=split)
        return {"loss": self.loss(params, batch, key=key)}
