"""Shapes of the parameters of models, by name."""

Shapes = dict[str, tuple[int, ...]]


def mlp(inputs: int = 784, width: int = 1024, outputs: int = 10) -> Shapes:
    """An MLP with two hidden layers: 6 tensors and 1,863,690 parameters by default."""
    sizes = (inputs, width, width, outputs)
    return {
        name: shape
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False))
        for name, shape in ((f"w{i}", (fan_out, fan_in)), (f"b{i}", (fan_out,)))
    }


def transformer(layers: int, width: int = 64, tokens: int = 256) -> Shapes:
    """A decoder with separate queries, keys and values: one embedding, and 16 tensors in each layer."""
    shapes: Shapes = {"embedding": (tokens, width)}
    for i in range(layers):
        linear = dict.fromkeys(("query", "key", "value", "out"), (width, width))
        for name, shape in {**linear, "mlp_in": (4 * width, width), "mlp_out": (width, 4 * width)}.items():
            shapes |= {f"{i}.{name}.weight": shape, f"{i}.{name}.bias": shape[:1]}
        for name in ("attention_norm", "mlp_norm"):
            shapes |= {f"{i}.{name}.scale": (width,), f"{i}.{name}.offset": (width,)}
    return shapes


def vit(layers: int = 12, width: int = 768, patch: int = 16, image: int = 224, classes: int = 1000) -> Shapes:
    """A vision transformer with fused queries, keys and values; by default ViT-B/16, 86,567,656 parameters."""
    return {
        "class_token": (1, 1, width),
        "patches.weight": (patch, patch, 3, width),
        "patches.bias": (width,),
        "positions": (1, (image // patch) ** 2 + 1, width),
        **_fused_blocks(layers, width),
        "readout.weight": (width, classes),
        "readout.bias": (classes,),
    }


def gpt2(layers: int = 24, width: int = 1024, tokens: int = 50_257, length: int = 1024) -> Shapes:
    """The decoder GPT-2; by default its medium size, 354,823,168 parameters."""
    return {"tokens": (tokens, width), "positions": (length, width), **_fused_blocks(layers, width)}


def distinct(tensors: int = 48) -> Shapes:
    """Small matrices of which no two have the same shape."""
    return {f"w{i}": (16 + 8 * i, 24 + 8 * i) for i in range(tensors)}


def _fused_blocks(layers: int, width: int) -> Shapes:
    """Pre-norm blocks of 12 tensors, and the last norm."""
    shapes: Shapes = {}
    for i in range(layers):
        linear = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "mlp_in": (width, 4 * width),
            "mlp_out": (4 * width, width),
        }
        for name, shape in linear.items():
            shapes |= {f"{i}.{name}.weight": shape, f"{i}.{name}.bias": shape[1:]}
        for name in ("attention_norm", "mlp_norm"):
            shapes |= {f"{i}.{name}.scale": (width,), f"{i}.{name}.offset": (width,)}
    return shapes | {"norm.scale": (width,), "norm.offset": (width,)}
