from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Embedding, Linear, check_sizes, divided
from ._norms import LayerNorm


class Attention(eqx.Module):
    """Multi-head self-attention over the tokens of one example.

    The parametrization scales the inner products of queries and keys: by $1/\\sqrt{d}$ for heads of $d$ units under SP,
    by $1/d$ under muP.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    causal: bool = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        width: Axis,
        *,
        heads: int,
        causal: bool,
        parametrization: AbstractParametrization,
        residual: bool = True,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `width`: the number of units per token.
        - `heads`: the number of heads, the same at all widths.
        - `causal`: whether tokens attend only to themselves and to earlier tokens.
        - `parametrization`: sets initialization, multipliers and the scale of the logits.
        - `residual`: whether the layer is part of a residual branch.
        - `key`: for the initial values.

        Raises `ValueError` if `width` or its base is not a multiple of `heads`.
        """
        self.query, self.key, self.value, self.out = (
            Linear(width, width, parametrization=parametrization, residual=residual, key=k)
            for k in jax.random.split(key, 4)
        )
        size = divided("width", width.size, heads, "`heads`")
        base = None if width.base is None else divided("base_width", width.base, heads, "`heads`")
        self.heads = heads
        self.causal = causal
        self.scale = float(parametrization.attention_scale(Axis(size, base, width.wide)))

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        """The output for each token of `x`."""
        q, k, v = (f(x).reshape(x.shape[0], self.heads, -1) for f in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(q, k, v, scale=self.scale, is_causal=self.causal)
        return self.out(mixed.reshape(x.shape))


class TransformerBlock(eqx.Module):
    """Pre-norm attention and a GELU MLP of four times the width, each in a residual branch, for one example."""

    attention_norm: LayerNorm
    attention: Attention
    mlp_norm: LayerNorm
    mlp_in: Linear
    mlp_out: Linear
    dropout: eqx.nn.Dropout
    residual_multiplier: float

    def __init__(
        self,
        width: Axis,
        *,
        heads: int,
        causal: bool,
        dropout: float = 0.0,
        parametrization: AbstractParametrization,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `width`, `heads`, `causal`, `parametrization`, `key`: as in [`lo_components.nn.Attention`][].
        - `dropout`: the dropout rate of the outputs of each branch.
        """
        attention_key, in_key, out_key = jax.random.split(key, 3)
        common: dict[str, Any] = dict(parametrization=parametrization, residual=True)
        self.attention_norm, self.mlp_norm = LayerNorm(width, residual=True), LayerNorm(width, residual=True)
        self.attention = Attention(width, heads=heads, causal=causal, key=attention_key, **common)
        self.mlp_in = Linear(width, width.times(4), key=in_key, **common)
        self.mlp_out = Linear(width.times(4), width, key=out_key, **common)
        self.dropout = eqx.nn.Dropout(dropout)
        self.residual_multiplier = float(parametrization.residual_multiplier)

    def __call__(
        self, x: Float[Array, "tokens width"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens width"]:
        """The tokens `x` after both branches. Dropout is applied if there is a `key`."""
        keys = (None, None) if key is None else jax.random.split(key)
        branches = (
            lambda y: self.attention(self.attention_norm(y)),
            lambda y: self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(y)))),
        )
        for branch, k in zip(branches, keys, strict=True):
            x = x + self.residual_multiplier * self.dropout(branch(x), key=k, inference=k is None)
        return x


def _blocks(
    width: Axis, depth: int, *, heads: int, causal: bool, dropout: float, parametrization, key
) -> tuple[TransformerBlock, ...]:
    return tuple(
        TransformerBlock(width, heads=heads, causal=causal, dropout=dropout, parametrization=parametrization, key=k)
        for k in jax.random.split(key, depth)
    )


def _through(blocks: tuple[TransformerBlock, ...], x: Float[Array, "tokens width"], key: PRNGKeyArray | None):
    keys = [None] * len(blocks) if key is None else jax.random.split(key, len(blocks))
    for block, k in zip(blocks, keys, strict=True):
        x = block(x, key=k)
    return x


class TransformerLM(eqx.Module):
    """A decoder-only language model for one sequence of tokens.

    ??? cite "Source"
        The language models of muLO (arXiv 2406.00153) and LAgg-A (arXiv 2312.02204), which have no positional
        encoding: only the causal mask distinguishes positions.
    """

    embedding: Embedding
    positions: Embedding | None
    blocks: tuple[TransformerBlock, ...]
    norm: LayerNorm
    readout: Linear

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int,
        depth: int,
        heads: int,
        max_length: int | None = None,
        dropout: float = 0.0,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `vocab_size`: the number of distinct tokens.
        - `width`: the number of units per token, a multiple of `heads`.
        - `depth`: the number of blocks.
        - `heads`: the number of attention heads.
        - `max_length`: the number of learned positional embeddings; `None` for no positional encoding.
        - `dropout`: the dropout rate of the outputs of each residual branch; 0.1 in the papers.
        - `parametrization`, `base_width`, `key`: as in [`lo_components.nn.MLP`][].

        Raises `ValueError` if a size is below 1, or `width` is not a multiple of `heads`.
        """
        check_sizes(
            vocab_size=vocab_size, width=width, depth=depth, heads=heads, base_width=base_width, max_length=max_length
        )
        axis = Axis.growing(width, base_width)
        embedding_key, position_key, blocks_key, readout_key = jax.random.split(key, 4)
        common: dict[str, Any] = dict(parametrization=parametrization)
        self.embedding = Embedding(vocab_size, axis, key=embedding_key, **common)
        self.positions = None if max_length is None else Embedding(max_length, axis, key=position_key, **common)
        self.blocks = _blocks(axis, depth, heads=heads, causal=True, dropout=dropout, key=blocks_key, **common)
        self.norm = LayerNorm(axis)
        self.readout = Linear(axis, vocab_size, key=readout_key, **common)

    def __call__(
        self, tokens: Int[Array, " length"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "length vocab"]:
        """The logits of the next token at each position of `tokens`. Dropout is applied if there is a `key`.

        Raises `ValueError` if there are more than `max_length` tokens.
        """
        x = self.embedding(tokens)
        if self.positions is not None:
            if tokens.shape[0] > self.positions.weight.shape[0]:
                raise ValueError(
                    f"`tokens` must have at most {self.positions.weight.shape[0]} tokens, the `max_length` of the "
                    f"model, got {tokens.shape[0]}."
                )
            x = x + self.positions(jnp.arange(tokens.shape[0]))
        return self.readout(self.norm(_through(self.blocks, x, key)))


class ViT(eqx.Module):
    """A vision transformer for one image: linear patch embedding, class token, learned positions, pre-norm blocks.

    ??? cite "Source"
        Dosovitskiy et al., *An Image is Worth 16x16 Words* (arXiv 2010.11929); sizes tiny (192, 12 blocks, 3 heads) and
        small (384, 12 blocks, 6 heads) from DeiT (arXiv 2012.12877).
    """

    patches: Linear
    class_token: Embedding
    positions: Embedding
    blocks: tuple[TransformerBlock, ...]
    norm: LayerNorm
    readout: Linear
    patch_size: int = eqx.field(static=True)

    def __init__(
        self,
        image_shape: tuple[int, ...],
        out_size: int,
        *,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        dropout: float = 0.0,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `image_shape`: `(height, width)` or `(height, width, channels)`.
        - `out_size`: the number of outputs.
        - `patch_size`: the side of a patch in pixels; it must divide both sides of the image.
        - `width`: the number of units per token, a multiple of `heads`.
        - `depth`: the number of blocks.
        - `heads`, `dropout`: as in [`lo_components.nn.TransformerLM`][].
        - `parametrization`, `base_width`, `key`: as in [`lo_components.nn.MLP`][].

        Raises `ValueError` if a size is below 1, `patch_size` does not divide the image, or `width` is not a multiple
        of `heads`.
        """
        check_sizes(
            out_size=out_size, patch_size=patch_size, width=width, depth=depth, heads=heads, base_width=base_width
        )
        height, image_width, *channels = image_shape
        rows = divided("image_shape[0]", height, patch_size, "`patch_size`")
        columns = divided("image_shape[1]", image_width, patch_size, "`patch_size`")
        axis = Axis.growing(width, base_width)
        patch_key, token_key, position_key, blocks_key, readout_key = jax.random.split(key, 5)
        common: dict[str, Any] = dict(parametrization=parametrization)
        in_size = patch_size**2 * (channels[0] if channels else 1)
        self.patches = Linear(in_size, axis, key=patch_key, **common)
        self.class_token = Embedding(1, axis, key=token_key, **common)
        self.positions = Embedding(rows * columns + 1, axis, key=position_key, **common)
        self.blocks = _blocks(axis, depth, heads=heads, causal=False, dropout=dropout, key=blocks_key, **common)
        self.norm = LayerNorm(axis)
        self.readout = Linear(axis, out_size, key=readout_key, **common)
        self.patch_size = patch_size

    def __call__(self, x: Float[Array, "height width *c"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        """The outputs for one image `x`. Dropout is applied if there is a `key`.

        Raises `ValueError` if `x` is not of the size that the model was built for.
        """
        size, (height, width) = self.patch_size, x.shape[:2]
        if height * width != size**2 * (self.positions.weight.shape[0] - 1):
            raise ValueError(
                f"`x` must have the size of the `image_shape` that the model was built for, got {x.shape}."
            )
        grid = x.reshape(height // size, size, width // size, size, -1)
        patches = self.patches(jnp.moveaxis(grid, 1, 2).reshape((height // size) * (width // size), -1))
        positions = jnp.arange(patches.shape[0] + 1)
        tokens = jnp.concatenate([self.class_token(jnp.zeros(1, jnp.int32)), patches]) + self.positions(positions)
        return self.readout(self.norm(_through(self.blocks, tokens, key))[0])
