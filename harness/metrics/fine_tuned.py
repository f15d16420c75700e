"""Weights of preference models, CLIPs that were trained on people's choices, under open_clip's names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """What a file of weights fits, and how its images are prepared."""

    architecture: str  # open_clip's
    resize: Literal["shortest", "longest"]  # the side that becomes 224; the rest is cut off, or filled black


FINE_TUNED = {
    "pick_score": FineTuned(architecture="ViT-H-14", resize="shortest"),
    "hps_v2": FineTuned(architecture="ViT-H-14", resize="longest"),
}


def read_weights(path: Path) -> Tensors:
    """The tensors of a `.safetensors`, or of a `.pt` read without its code, under open_clip's names.

    Raises ValueError where the layout is neither open_clip's nor transformers' `CLIPModel`, and what torch
    and safetensors raise for damaged files.
    """
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if "vision_model.embeddings.class_embedding" in state:
        return dict(from_transformers(state))
    if "visual.class_embedding" not in state:
        raise ValueError(f"{path.name} holds no CLIP in open_clip's or transformers' layout")
    return dict(state)


def from_transformers(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """A `CLIPModel` under open_clip's names; query, key and value of a layer are one matrix there."""
    yield "logit_scale", state["logit_scale"]
    yield "text_projection", state["text_projection.weight"].T.contiguous()
    yield "visual.proj", state["visual_projection.weight"].T.contiguous()
    yield "token_embedding.weight", state["text_model.embeddings.token_embedding.weight"]
    yield "positional_embedding", state["text_model.embeddings.position_embedding.weight"]
    yield "visual.class_embedding", state["vision_model.embeddings.class_embedding"]
    yield "visual.positional_embedding", state["vision_model.embeddings.position_embedding.weight"]
    yield "visual.conv1.weight", state["vision_model.embeddings.patch_embedding.weight"]
    for theirs, ours in (
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),  # spelt so in transformers
        ("vision_model.post_layernorm", "visual.ln_post"),
    ):
        yield from ((f"{ours}.{part}", state[f"{theirs}.{part}"]) for part in ("weight", "bias"))
    for theirs, ours in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        number = 0
        while f"{theirs}.encoder.layers.{number}.layer_norm1.weight" in state:
            yield from _layer(state, f"{theirs}.encoder.layers.{number}", f"{ours}.resblocks.{number}")
            number += 1


def _layer(state: Mapping[str, torch.Tensor], theirs: str, ours: str) -> Iterator[tuple[str, torch.Tensor]]:
    for part in ("weight", "bias"):
        joined = [state[f"{theirs}.self_attn.{name}_proj.{part}"] for name in "qkv"]
        yield f"{ours}.attn.in_proj_{part}", torch.cat(joined)
        for name, own in (
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            yield f"{ours}.{own}.{part}", state[f"{theirs}.{name}.{part}"]
