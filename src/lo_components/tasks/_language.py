import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._types import Params
from ..data import TokenDataset, one_split, sample_tokens
from ..parametrization import AbstractParametrization, WidthSpec
from ._base import AbstractMeasuredTask
from ._model import AbstractModelTask, TrainedModel, over_split


class LanguageModeling(AbstractModelTask[Int[Array, "batch length"]], AbstractMeasuredTask[Int[Array, "batch length"]]):
    r"""Predict the next token. The loss is the mean cross-entropy in nats over all next tokens that are not padding.

    In meta-losses, per-step losses are clipped at $1.5 \ln V$ for a vocabulary of $V$ tokens.
    """

    dataset: TokenDataset
    trained: TrainedModel
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        dataset: TokenDataset,
        build: Callable[[PRNGKeyArray], Any],
        *,
        widths: PyTree[WidthSpec] | None = None,
        parametrization: AbstractParametrization | None = None,
        batch_size: int = 128,
    ):
        """**Arguments:**

        - `dataset`: packed sequences, kept on the device.
        - `build`: maps a key to a model, which maps `[length]` tokens to `[length, vocab]` logits and takes a `key` for
            dropout.
        - `widths`, `parametrization`: as in [`lo_components.tasks.ImageClassification`][].
        - `batch_size`: sequences per step, sampled with replacement.

        Raises `ValueError` if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.dataset = dataset
        self.trained = TrainedModel(build, parametrization, widths)
        self.batch_size = batch_size

    @property
    def max_loss(self) -> float:
        return 1.5 * math.log(self.dataset.vocab_size)

    def batch(
        self, *, key: PRNGKeyArray, split: str = "train", worker: Int[Array, ""] | None = None
    ) -> Int[Array, "batch length"]:
        return sample_tokens(self.dataset, self.batch_size, split=split, key=key)

    def loss(self, params: Params, batch: Int[Array, "batch length"], *, key: PRNGKeyArray) -> Float[Array, ""]:
        model, keys = self.model(params), jax.random.split(key, batch.shape[0])
        logits = jax.vmap(lambda tokens, k: model(tokens, key=k))(batch[:, :-1], keys)
        losses, counted = self._token_losses(logits, batch)
        return jnp.sum(losses) / jnp.maximum(1.0, jnp.sum(counted))

    def metrics(self, params: Params, *, split: str, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
        """The mean loss of `params` over all tokens of `split`, in nats and without dropout."""
        model, tokens = self.model(params), one_split(self.dataset.splits, split)

        def chunk(index: Int[Array, " batch"]):
            batch = tokens[index].astype(jnp.int32)
            losses, counted = self._token_losses(jax.vmap(model)(batch[:, :-1]), batch)
            return jnp.sum(losses, axis=1), jnp.sum(counted, axis=1)

        losses, counted = over_split(chunk, tokens.shape[0], self.batch_size)
        return {"loss": jnp.sum(losses) / jnp.maximum(1.0, jnp.sum(counted))}

    def _token_losses(
        self, logits: Float[Array, "batch next vocab"], batch: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch next"], Float[Array, "batch next"]]:
        """The loss of each next token, and a mask that is 0 for padding."""
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        pad_id = -1 if self.dataset.pad_id is None else self.dataset.pad_id
        counted = (batch[:, 1:] != pad_id).astype(jnp.float32)
        return losses * counted, counted
