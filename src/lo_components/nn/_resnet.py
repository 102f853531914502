from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..parametrization import SP, AbstractParametrization, Axis
from ._layers import Conv, Linear, check_sizes, divided
from ._norms import BatchNorm, GroupNorm

_Normalize = Callable[[GroupNorm | BatchNorm, Float[Array, "h w c"]], Float[Array, "h w c"]]


class _Block(eqx.Module):
    """Two normalized 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 ones, with a shortcut."""

    convs: tuple[Conv, ...]
    norms: tuple[GroupNorm | BatchNorm, ...]
    shortcut: Conv | None
    shortcut_norm: GroupNorm | BatchNorm | None
    residual_multiplier: float

    def __init__(self, fan_in: Axis, channels: Axis, *, stride: int, bottleneck: bool, norm, parametrization, key):
        out = channels.times(4) if bottleneck else channels
        sizes = [fan_in, channels, channels, out] if bottleneck else [fan_in, channels, channels]
        kernels, strides = ((1, 3, 1), (1, stride, 1)) if bottleneck else ((3, 3), (stride, 1))
        *keys, shortcut_key = jax.random.split(key, len(kernels) + 1)
        common: dict[str, Any] = dict(parametrization=parametrization, use_bias=False)
        self.convs = tuple(
            Conv(n, m, kernel_size=size, stride=s, residual=True, key=k, **common)
            for n, m, size, s, k in zip(sizes[:-1], sizes[1:], kernels, strides, keys, strict=True)
        )
        self.norms = tuple(norm(m, residual=True) for m in sizes[1:])
        same = fan_in == out and stride == 1
        self.shortcut = None if same else Conv(fan_in, out, kernel_size=1, stride=stride, key=shortcut_key, **common)
        self.shortcut_norm = None if same else norm(out)
        self.residual_multiplier = float(parametrization.residual_multiplier)

    def __call__(self, x: Float[Array, "h w c"], normalize: _Normalize) -> Float[Array, "h2 w2 c2"]:
        branch = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            branch = normalize(norm, conv(jax.nn.relu(branch) if i else branch))
        shortcut = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = normalize(self.shortcut_norm, self.shortcut(x))
        return jax.nn.relu(shortcut + self.residual_multiplier * branch)


class ResNet(eqx.Module):
    """A residual convolutional network for one image.

    With `norm=BatchNorm`, call it under `jax.vmap(..., axis_name="batch")`; see [`lo_components.nn.BatchNorm`][].

    ??? cite "Source"
        He et al., *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), table 1 and section 4.2.
    """

    stem: Conv
    stem_norm: GroupNorm | BatchNorm
    blocks: tuple[_Block, ...]
    readout: Linear
    large_stem: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_size: int,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        width: int = 512,
        norm: type[GroupNorm | BatchNorm] = GroupNorm,
        large_stem: bool = False,
        parametrization: AbstractParametrization = SP(),
        base_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_size`: the number of image channels (1 for gray images) and of outputs.
        - `blocks`: the number of residual blocks of each stage: `(2, 2, 2, 2)` is ResNet-18, and `(3, 4, 6, 3)` with
            bottlenecks is ResNet-50.
        - `bottleneck`: whether blocks are bottlenecks, whose outputs have four times as many channels.
        - `width`: the number of channels of the last stage, inside the bottleneck; 512 in the paper. Each stage has
            twice the channels of the one before. The first must have a multiple of 8 channels.
        - `norm`: [`lo_components.nn.GroupNorm`][], with 8 groups, or [`lo_components.nn.BatchNorm`][].
        - `large_stem`: start with a 7x7 convolution of stride 2 and max-pooling, for images of 64 pixels and more,
            instead of a 3x3 convolution.
        - `parametrization`, `base_width`, `key`: as in [`lo_components.nn.MLP`][].

        Raises `ValueError` if a size is below 1, a stage has no blocks, or the first stage does not have a multiple of
        8 channels.
        """
        check_sizes(in_channels=in_channels, out_size=out_size, width=width, base_width=base_width)
        if not blocks or min(blocks) < 1:
            raise ValueError(f"`blocks` must have at least one block per stage, got {blocks}.")
        shrink = 2 ** (len(blocks) - 1)
        unit = f"8 channels times {shrink}, for {len(blocks)} stages"
        first = 8 * divided("width", width, 8 * shrink, unit)
        base = None if base_width is None else divided("base_width", base_width, shrink, unit)
        stem_key, readout_key, *keys = jax.random.split(key, sum(blocks) + 2)
        x = Axis.growing(first, base)
        self.stem = Conv(
            in_channels,
            x,
            kernel_size=7 if large_stem else 3,
            stride=2 if large_stem else 1,
            parametrization=parametrization,
            use_bias=False,
            key=stem_key,
        )
        self.stem_norm = norm(x)
        made = []
        for stage, count in enumerate(blocks):
            channels = Axis.growing(first, base).times(2**stage)
            for i in range(count):
                block = _Block(
                    x,
                    channels,
                    stride=2 if stage and not i else 1,
                    bottleneck=bottleneck,
                    norm=norm,
                    parametrization=parametrization,
                    key=keys[len(made)],
                )
                made.append(block)
                x = channels.times(4) if bottleneck else channels
        self.blocks = tuple(made)
        self.readout = Linear(x, out_size, parametrization=parametrization, key=readout_key)
        self.large_stem = large_stem

    def __call__(
        self,
        x: Float[Array, "height width *c"],
        *,
        key: PRNGKeyArray | None = None,
        weight: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, " out"]:
        """The outputs for one image `x`, gray or `[height, width, channels]`; `key` is ignored.

        `weight` is the weight of this example in the statistics of [`lo_components.nn.BatchNorm`][].
        """

        def normalize(norm, y):
            return norm(y, weight=weight) if isinstance(norm, BatchNorm) else norm(y)

        x = jax.nn.relu(normalize(self.stem_norm, self.stem(x.reshape(*x.shape[:2], -1))))
        if self.large_stem:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), "SAME")
        for block in self.blocks:
            x = block(x, normalize)
        return self.readout(jnp.mean(x, (0, 1)))
