"""A model in diffusers' folder layout written as one file, under the names of Stability AI's own code."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.config.weights.names import TEXT_BODY

State = dict[str, torch.Tensor]
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
OUTSIDE = (
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
)


def write_original(folder: Path, file: Path, *, vae: bool = True, **more: Any) -> Path:
    """The weights of `folder` in `file`, `more` beside them; returns `file`."""
    names = [name for name in PARTS if (folder / name).is_dir() and (vae or name != "vae")]
    parts = {name: load_file(next((folder / name).glob("*.safetensors"))) for name in names}
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    metadata = more.pop("metadata", {})
    state = {**original(parts, layers=layers), **more}
    save_file({key: t.contiguous() for key, t in state.items()}, file, {"format": "pt", **metadata})
    return file


def original(parts: Mapping[str, State], *, layers: int) -> State:
    """The tensors of a base, or of a refiner, which has the second text encoder alone, by their names."""
    attending = {key.split(".attentions.")[0] for key in parts["unet"] if ".attentions." in key}
    state = {
        f"model.diffusion_model.{unet_name(key, layers, attending)}": t for key, t in parts["unet"].items()
    }
    for key, tensor in parts.get("text_encoder", {}).items():
        name = TEXT_BODY + key.removeprefix(TEXT_BODY)
        state[f"conditioner.embedders.0.transformer.{name}"] = tensor
    second = f"conditioner.embedders.{1 if 'text_encoder' in parts else 0}.model"
    state |= {f"{second}.{key}": t for key, t in open_clip(parts["text_encoder_2"]).items()}
    return state | {f"first_stage_model.{key}": t for key, t in original_vae(parts.get("vae", {})).items()}


def unet_name(key: str, layers: int, attending: set[str]) -> str:
    """`down_blocks.1.attentions.0.…` → `input_blocks.4.1.…`, if a block has two layers."""
    for ours, theirs in OUTSIDE:
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    if found := re.fullmatch(r"mid_block\.(attentions|resnets)\.(\d)\.(.+)", key):
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_resnet(found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)
    assert found is not None, key
    side, level, kind, layer, rest = found.groups()
    of_level = (layers + 1) * int(level)
    if kind == "downsamplers":
        return f"input_blocks.{of_level + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{level}" in attending else 1  # behind the residual block and the attention
        return f"output_blocks.{of_level + layers}.{place}.{rest}"
    block = (
        f"input_blocks.{of_level + int(layer) + 1}"
        if side == "down"
        else f"output_blocks.{of_level + int(layer)}"
    )
    return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    for ours, theirs in RESNET:
        if rest.startswith(f"{ours}."):
            return rest.replace(ours, theirs, 1)
    raise AssertionError(rest)


def open_clip(state: State) -> State:
    """transformers' text encoder as open_clip has it: one tensor of queries, keys and values."""
    state = {key.removeprefix(TEXT_BODY): t for key, t in state.items()}
    found: State = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    names = {
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
    }
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layers.")}
    for layer in layers:
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            for own, name in names.items():
                found[f"{theirs}.{name}.{end}"] = state[f"{ours}.{own}.{end}"]
            found[f"{theirs}.attn.in_proj_{end}"] = torch.cat(
                [state[f"{ours}.self_attn.{name}_proj.{end}"] for name in "qkv"]
            )
    return found


def original_vae(state: State) -> State:
    """The VAE's tensors without a prefix, its attention's layers as 1 × 1 convolutions."""
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down_blocks.")})
    found: State = {}
    for key, tensor in state.items():
        name = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        for ours, theirs in (("resnets", "block"), ("upsamplers.0", "upsample")):
            for level in range(levels):  # counted from the other end
                name = name.replace(f"up_blocks.{level}.{ours}", f"up.{levels - 1 - level}.{theirs}")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = re.sub(r"\.to_([qkv])\.", r".\1.", name).replace("to_out.0", "proj_out")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[name] = tensor
    return found


def write_hollow(state: Mapping[str, torch.Tensor], file: Path) -> Path:
    """A file with these tensors' names and shapes, and a hole in place of numbers; returns `file`."""
    header, end = {}, 0
    for key, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)
    return file
