"""An adapter's tensors in diffusers' key layout and in kohya's, which A1111 and ComfyUI read too.

    unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight

Both hold the same matrices. The scale is where they differ: diffusers keeps one alpha in the file's header,
kohya one per module as a tensor, always divided by the rank. A DoRA's magnitudes are a vector here and
`dora_scale` there, with as many axes as the weight.

kohya trains SDXL on Stability AI's own UNet (`sgm`), whose blocks are numbered through: three to a level,
input_blocks.0 being conv_in. Such names stand for SDXL's shape alone. A UNet of another shape keeps
diffusers' names with underscores, as kohya's files for SD 1.5 do.

Shape legend: I in, O out, R rank, k kernel.
"""

import re
from collections.abc import Iterator
from typing import Literal

import torch

from harness.errors import ModelError

State = dict[str, torch.Tensor]
Blocks = Literal["sgm", "diffusers"]

SUFFIXES = {  # diffusers' name of a module's tensor: kohya's
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
PARTS = {  # diffusers' name of the model's part: kohya's
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
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
LEVELS = 3  # of SDXL's UNet
PER_LEVEL = 3  # sgm's blocks to a level: two of layers and a downsampler, or three of layers
COMPOUND = (  # names that hold an underscore of their own
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "proj_in", "proj_out"),
    *("to_q", "to_k", "to_v", "to_out", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection"),
)
NAME = re.compile(rf"({'|'.join(COMPOUND)}|[a-z0-9]+)(?:_|$)")


def to_kohya(state: State, *, alpha: float, blocks: Blocks = "sgm") -> State:
    """A low-rank adapter's tensors under kohya's names, each module with its alpha.

    `state` is in diffusers' layout. `alpha` is what kohya divides by the rank: the adapter's scale times its
    rank, whatever its kind. `blocks: diffusers` is for a UNet that has not SDXL's shape.

    Raises ModelError for a tensor that kohya's layout has no name for.
    """
    converted: State = {}
    for key, tensor in sorted(state.items()):
        module, suffix = _split(key)
        name = _kohya_module(key, module, blocks)
        if suffix == "lora_magnitude_vector":
            tensor = _as_dora_scale(tensor, state[f"{module}.lora_B.weight"])
        if suffix == "lora_A.weight":
            converted[f"{name}.alpha"] = torch.tensor(float(alpha))
        converted[f"{name}.{SUFFIXES[suffix]}"] = tensor.contiguous()
    return converted


def from_kohya(state: State) -> State:
    """The same adapter under diffusers' names, with `<module>.alpha` where a module's alpha is not its rank.

    Without an alpha, a module's scale is 1, as in A1111 and ComfyUI. Block names may be sgm's or diffusers'.
    Text encoders' modules are named with `text_model`, as in files on the hub.

    Raises ModelError for a tensor that is no part of a LoRA or DoRA, or of a module that SDXL has not.
    """
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        name, _, suffix = key.partition(".")
        if suffix not in (*SUFFIXES.values(), "alpha"):
            raise ModelError(
                f"{key} is no tensor of a LoRA in kohya's layout; allowed: <module>.lora_down.weight, "
                "lora_up.weight, alpha, dora_scale (LoHa, LoKr and other LyCORIS kinds cannot be read)"
            )
        modules.setdefault(name, {})[suffix] = tensor
    return {key: tensor for name, parts in sorted(modules.items()) for key, tensor in _module(name, parts)}


def _module(name: str, parts: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    if "lora_down.weight" not in parts or "lora_up.weight" not in parts:
        raise ModelError(f"{name} must have both lora_down.weight and lora_up.weight")
    module = _diffusers_module(name)
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    yield f"{module}.lora_A.weight", down
    yield f"{module}.lora_B.weight", up
    if "alpha" in parts and float(parts["alpha"]) != down.shape[0]:
        yield f"{module}.alpha", parts["alpha"]
    if "dora_scale" in parts:
        yield f"{module}.lora_magnitude_vector", _as_magnitude(name, parts["dora_scale"], up)


def _as_dora_scale(magnitude: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """PEFT's vector [O] (of a convolution [1, O, 1, 1]) with the weight's axes, its first one O."""
    return magnitude.reshape(up.shape[0], *[1] * (up.ndim - 1))


def _as_magnitude(name: str, dora_scale: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if dora_scale.shape[0] != up.shape[0] or dora_scale.numel() != up.shape[0]:
        raise ModelError(
            f"{name}.dora_scale has shape {tuple(dora_scale.shape)}; only a DoRA with one magnitude per "
            f"output ({up.shape[0]} here) can be read, as PEFT's and LyCORIS's wd_on_output have it"
        )
    return dora_scale.reshape(-1) if up.ndim == 2 else dora_scale.reshape(1, -1, 1, 1)


def _split(key: str) -> tuple[str, str]:
    if key.endswith(".lora_magnitude_vector.weight"):  # as transformers has the text encoders'
        key = key.removesuffix(".weight")
    for suffix in SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key.removesuffix(f".{suffix}"), suffix
    allowed = ", ".join(SUFFIXES)
    raise ModelError(f"{key} has no name in kohya's layout; allowed: <part>.<module>. and {allowed}")


def _kohya_module(key: str, module: str, blocks: Blocks) -> str:
    part, _, inner = module.partition(".")
    if part not in PARTS or not inner:
        raise ModelError(f"{key} is of no part that an adapter acts on; allowed: {', '.join(PARTS)}")
    if part != "unet":  # transformers 5 dropped `text_model` from the first encoder; files keep it
        return f"{PARTS[part]}_text_model_" + inner.removeprefix("text_model.").replace(".", "_")
    flat = inner.replace(".", "_")
    return f"{PARTS[part]}_{flat if blocks == 'diffusers' else _sgm(key, flat)}"


def _diffusers_module(name: str) -> str:
    if name.startswith("lora_te_"):  # some tools' name of the first, as if there were no second
        name = name.replace("lora_te_", "lora_te1_", 1)
    for part, prefix in PARTS.items():
        if name.startswith(f"{prefix}_"):
            flat = name.removeprefix(f"{prefix}_")
            dotted = ".".join(NAME.findall(_from_sgm(flat) if part == "unet" else flat))
            break
    else:
        allowed = ", ".join(f"{prefix}_…" for prefix in PARTS.values())
        raise ModelError(f"{name} is of no part of SDXL in kohya's layout; allowed: {allowed}")
    if part != "unet" and not dotted.startswith("text_model.encoder.layers."):
        raise ModelError(f"{name} is no layer of SDXL's text encoders")
    return f"{part}.{dotted}"


def _sgm(key: str, flat: str) -> str:
    """`down_blocks_1_attentions_0_…` → `input_blocks_4_1_…`."""
    if flat in SGM_OUTSIDE:
        return SGM_OUTSIDE[flat]
    if found := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", flat):
        kind, layer, rest = found.groups()
        return f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}_{_sgm_inner(kind, rest)}"
    found = re.fullmatch(
        r"(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_(.+)", flat
    )
    if found is None or int(found[2]) >= LEVELS or int(found[4]) >= PER_LEVEL:
        raise ModelError(f"{key} is of no module of SDXL's UNet, so it has no name in kohya's layout")
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


def _from_sgm(flat: str) -> str:
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
