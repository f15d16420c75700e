"""Names of SDXL's modules: diffusers', with dots, and those of Stability AI's own UNet (`sgm`).

    down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
    input_blocks.4.1.transformer_blocks.0.attn1.to_q

sgm numbers its blocks through: three to a level, input_blocks.0 being conv_in. Such names stand for SDXL's
shape alone. kohya writes either kind with underscores in place of dots ("flat" below).
"""

import re
from typing import Literal

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")
TEXT_BODY = "text_model."  # always in the files' names, in the encoders' own only where transformers has it

SGM_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers_1",
}
SGM_OUTSIDE = {  # modules outside the blocks, which no file of the harness has but others' may
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
SGM = ("input_blocks", "middle_block", "output_blocks")
LEVELS = 3  # of SDXL's UNet
SGM_LAYERS = 2  # `layers_per_block` of a UNet that its names are made for
PER_LEVEL = 3  # sgm's blocks to a level: two of layers and a downsampler, or three of layers
COMPOUND = (  # names that hold an underscore of their own
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "proj_in", "proj_out"),
    *("to_q", "to_k", "to_v", "to_out", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection"),
)
NAME = re.compile(rf"({'|'.join(COMPOUND)}|[a-z0-9]+)(?:_|$)")
OF_UNET = re.compile(
    r"((down_blocks|up_blocks)\.\d+|mid_block)\.(attentions|resnets|downsamplers|upsamplers)\.\d+\..+"
    r"|conv_in|conv_out|(time|add)_embedding\.linear_[12]"
)
OF_TEXT = re.compile(r"encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])")
TEXT_PROJECTION = "text_projection"  # of the second text encoder, beside its body
OLD_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def unet_module(name: str) -> str | None:
    """Diffusers' name of a module of the UNet, from any of its names; None where it is no such module."""
    dotted = _dotted(from_sgm(name.replace(".", "_").replace("_processor_", "_")))
    if dotted.endswith(".to_out"):  # as attention processors of 2023 were named
        dotted += ".0"
    return dotted if OF_UNET.fullmatch(dotted) else None


def text_module(name: str, part: Part) -> str | None:
    """A module of a text encoder, named within its body; None where it is no such module."""
    dotted = _dotted(name.replace(".", "_")).removeprefix(TEXT_BODY)
    head, _, last = dotted.rpartition(".")
    dotted = f"{head}.{OLD_ATTENTION[last]}" if last in OLD_ATTENTION else dotted
    if part == "text_encoder_2" and dotted == TEXT_PROJECTION:
        return dotted
    return dotted if OF_TEXT.fullmatch(dotted) else None


def _dotted(flat: str) -> str:
    """A flat name with its dots; empty for a name with other signs than modules have."""
    names = NAME.findall(flat)
    return ".".join(names) if "_".join(names) == flat else ""


def to_sgm(flat: str) -> str | None:
    """`down_blocks_1_attentions_0_…` → `input_blocks_4_1_…`; None where SDXL's UNet has no such module."""
    if flat in SGM_OUTSIDE:
        return SGM_OUTSIDE[flat]
    if found := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", flat):
        kind, layer, rest = found.groups()
        return f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}_{_sgm_inner(kind, rest)}"
    found = re.fullmatch(
        r"(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_(.+)", flat
    )
    if found is None or int(found[2]) >= LEVELS or int(found[4]) >= PER_LEVEL:
        return None
    side, level, kind, layer, rest = found.groups()
    first = PER_LEVEL * int(level)
    match kind:
        case "downsamplers":
            return f"input_blocks_{first + PER_LEVEL}_0_op"
        case "upsamplers":
            return f"output_blocks_{first + PER_LEVEL - 1}_2_conv"
        case _:
            number = first + int(layer)
            block = f"input_blocks_{number + 1}" if side == "down" else f"output_blocks_{number}"
            return f"{block}_{1 if kind == 'attentions' else 0}_{_sgm_inner(kind, rest)}"


def _sgm_inner(kind: str, rest: str) -> str:
    return SGM_RESNET[rest] if kind == "resnets" else rest


def from_sgm(flat: str) -> str:
    """`input_blocks_4_1_…` → `down_blocks_1_attentions_0_…`; diffusers' own names stay as they are."""
    outside = {sgm: ours for ours, sgm in SGM_OUTSIDE.items()}
    if flat in outside:
        return outside[flat]
    resnet = {sgm: ours for ours, sgm in SGM_RESNET.items()}
    if found := re.fullmatch(r"middle_block_([012])_(.+)", flat):
        number, rest = int(found[1]), found[2]
        block = "mid_block_attentions_0" if number == 1 else f"mid_block_resnets_{number // 2}"
        return f"{block}_{resnet.get(rest, rest)}"
    found = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", flat)
    if found is None:
        return flat
    side = "down" if found[1] == "input" else "up"
    level, layer = divmod(int(found[2]) - (side == "down"), PER_LEVEL)
    place, rest = found[3], found[4]
    if rest in ("op", "conv"):
        return f"{side}_blocks_{level}_{side}samplers_0_conv"
    kind = "attentions" if place == "1" else "resnets"
    return f"{side}_blocks_{level}_{kind}_{layer}_{resnet.get(rest, rest)}"
