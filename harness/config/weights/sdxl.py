"""SDXL 1.0's modules that an adapter can act on, with their weights' shapes (Podell et al. 2023, table 1)."""

from collections.abc import Iterator, Mapping

from harness.config.weights.names import PARTS, TEXT_PROJECTION, Part

Shapes = Mapping[Part, Mapping[str, tuple[int, ...]]]  # of each module's weight, by part and module

PUBLISHED = ("stabilityai/stable-diffusion-xl-base-1.0", "random")  # sources of the published architecture
WIDTHS = (320, 640, 1280)  # of the UNet's levels
DEPTHS = (0, 2, 10)  # transformer blocks in an attention of each level
TEXT_WIDTH, TIME_WIDTH, ADDED_WIDTH = 2048, 1280, 2816
ENCODERS = ((768, 12), (1280, 32))  # width and layers of CLIP ViT-L and of ViT-bigG
LATENTS = 4


def sdxl_shapes() -> Shapes:
    """The modules of the published model."""
    parts = (_unet(), _text(*ENCODERS[0]), _text(*ENCODERS[1]))
    found = {part: dict(modules) for part, modules in zip(PARTS, parts, strict=True)}
    found["text_encoder_2"][TEXT_PROJECTION] = (ENCODERS[1][0], ENCODERS[1][0])
    return found


Named = Iterator[tuple[str, tuple[int, ...]]]


def _unet() -> Named:
    first, last = WIDTHS[0], WIDTHS[-1]
    yield "conv_in", (first, LATENTS, 3, 3)
    yield "conv_out", (LATENTS, first, 3, 3)
    for name, width in (("time_embedding", first), ("add_embedding", ADDED_WIDTH)):
        yield f"{name}.linear_1", (TIME_WIDTH, width)
        yield f"{name}.linear_2", (TIME_WIDTH, TIME_WIDTH)
    skips = [first]  # widths of what the way up joins to
    before = first
    for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        for layer in range(2):
            yield from _layer(f"down_blocks.{level}", layer, before, width, depth)
            before = width
            skips.append(width)
        if level < len(WIDTHS) - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", (width, width, 3, 3)
            skips.append(width)
    for layer in range(2):
        yield from _layer("mid_block", layer, last, last, DEPTHS[-1] if layer == 0 else 0)
    for level, (width, depth) in enumerate(zip(reversed(WIDTHS), reversed(DEPTHS), strict=True)):
        for layer in range(3):
            yield from _layer(f"up_blocks.{level}", layer, before + skips.pop(), width, depth)
            before = width
        if level < len(WIDTHS) - 1:
            yield f"up_blocks.{level}.upsamplers.0.conv", (width, width, 3, 3)


def _layer(block: str, layer: int, before: int, width: int, depth: int) -> Named:
    """A residual block and, with a depth, the attention behind it."""
    resnet, attention = f"{block}.resnets.{layer}", f"{block}.attentions.{layer}"
    yield f"{resnet}.conv1", (width, before, 3, 3)
    yield f"{resnet}.conv2", (width, width, 3, 3)
    yield f"{resnet}.time_emb_proj", (width, TIME_WIDTH)
    if before != width:
        yield f"{resnet}.conv_shortcut", (width, before, 1, 1)
    if not depth:
        return
    yield f"{attention}.proj_in", (width, width)
    yield f"{attention}.proj_out", (width, width)
    for number in range(depth):
        inner = f"{attention}.transformer_blocks.{number}"
        for attn, text in (("attn1", width), ("attn2", TEXT_WIDTH)):
            yield f"{inner}.{attn}.to_q", (width, width)
            yield f"{inner}.{attn}.to_k", (width, text)
            yield f"{inner}.{attn}.to_v", (width, text)
            yield f"{inner}.{attn}.to_out.0", (width, width)
        yield f"{inner}.ff.net.0.proj", (8 * width, width)
        yield f"{inner}.ff.net.2", (width, 4 * width)


def _text(width: int, layers: int) -> Named:
    for number in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"encoder.layers.{number}.self_attn.{name}", (width, width)
        yield f"encoder.layers.{number}.mlp.fc1", (4 * width, width)
        yield f"encoder.layers.{number}.mlp.fc2", (width, 4 * width)
