"""A tiny SDXL whose UNet has SDXL's blocks, narrow: every module of a real file has its place in it."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from tests.diffusion.tiny import tiny_sdxl

SHAPE: dict[str, Any] = {  # SDXL's UNet but for its widths
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}


def narrow_sdxl(folder: Path) -> Path:
    """Write it into `folder`; returns `folder`. The innermost blocks have 2 transformer layers, not 10."""
    tiny_sdxl(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            **{**SHAPE, "transformer_layers_per_block": (1, 1, 2)},
            sample_size=8,
            in_channels=8,
            out_channels=8,
            block_out_channels=(8, 16, 16),
            attention_head_dim=(1, 2, 2),
            norm_num_groups=4,
            cross_attention_dim=40,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 8 * 6,
        )
    # Guidance makes a random network chaotic; at full strength rounding would decide the image.
    unet.conv_out.weight.data *= 0.1
    unet.save_pretrained(folder / "unet")
    return folder
