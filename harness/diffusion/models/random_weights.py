"""SDXL 1.0's published architecture with random weights: its speed, memory, shapes and names.

Sizes are those of the configuration files published with the weights (Podell et al. 2023, SDXL, table 1):

| part                       | parameters    | tensors |
|----------------------------|---------------|---------|
| base UNet                  | 2 567 463 684 | 1680    |
| refiner UNet               | 2 259 526 660 | 1220    |
| text encoder (CLIP ViT-L)  | 123 060 480   | 196     |
| text encoder 2 (ViT-bigG)  | 694 659 840   | 517     |
| VAE                        | 83 653 863    | 248     |
"""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from harness.config.loading.tokens import CLIP_MERGES, CLIP_TOKENS, END, clip_vocabulary
from harness.config.schema.model import SdxlModel
from harness.diffusion.models.pipelines import DTYPES, Pipelines

UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),  # heads, in spite of the name: each is 64 wide
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 768 + 1280,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
REFINER_UNET: dict[str, Any] = UNET | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (6, 12, 24, 24),
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TEXT_ENCODER_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
POOL = 2**20 - 3  # a prime, so that no two rows of a weight are the same stretch of it


def random_pipelines(config: SdxlModel) -> Pipelines:
    """The pipelines of `source: random` on the CPU, in the model's precision, alike in every process."""
    pipelines = hollow_pipelines(config)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for pipeline in (pipelines.base, pipelines.refiner):
        for part in () if pipeline is None else pipeline.components.values():
            if isinstance(part, nn.Module) and next(part.parameters()).is_meta:
                _fill(part, pool)
    return pipelines


def hollow_pipelines(config: SdxlModel) -> Pipelines:
    """The same pipelines on the meta device: shapes and names without numbers, in about a second."""
    assert config.source == "random"
    dtype = DTYPES[config.precision]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE, latent_channels=4)
        text_encoder = CLIPTextModel(_text_config(TEXT_ENCODER))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config(TEXT_ENCODER_2))
        refiner_unet = None if config.refiner is None else UNet2DConditionModel(**REFINER_UNET)
    for part in (unet, vae, text_encoder, text_encoder_2, refiner_unet):
        if part is not None:
            nn.Module.to(
                part, dtype
            )  # diffusers' own `to` warns of parts kept in fp32, of which there are none
            part.requires_grad_(False).eval()
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    shared = {"vae": vae, "text_encoder_2": text_encoder_2, "tokenizer_2": _tokenizer("!")}
    base = StableDiffusionXLPipeline(
        **shared,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(END),
        scheduler=scheduler,
        add_watermarker=False,
    )
    refiner = None
    if refiner_unet is not None:
        refiner = StableDiffusionXLImg2ImgPipeline(
            **shared,
            unet=refiner_unet,
            text_encoder=None,
            tokenizer=None,
            scheduler=EulerDiscreteScheduler.from_config(scheduler.config),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    for pipeline in (base, refiner):
        if pipeline is not None:
            pipeline.set_progress_bar_config(disable=True)
    return Pipelines(base=base, refiner=refiner)


def write_configuration(folder: Path, *, refiner: bool) -> None:
    """SDXL's configurations and tokenizers, or its refiner's, in diffusers' layout without weights."""
    own = "random" if refiner else None
    pipelines = hollow_pipelines(SdxlModel(source="random", refiner=own, vae=None))
    pipeline: Any = pipelines.refiner if refiner else pipelines.base
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        match part:
            case CLIPTokenizer():
                part.save_pretrained(folder / name)
            case CLIPTextModel() | CLIPTextModelWithProjection():
                part.config.save_pretrained(folder / name)
            case ConfigMixin():
                part.save_config(folder / name)


def _text_config(sizes: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(
        **sizes,
        vocab_size=CLIP_MERGES + 2 * 256 + 2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=CLIP_MERGES + 2 * 256,
        eos_token_id=CLIP_MERGES + 2 * 256 + 1,
    )


def _fill(part: nn.Module, pool: torch.Tensor) -> None:
    """Give a module of the meta device memory and numbers that keep what passes through near unit variance.

    Weights are stretches of one pool of normal numbers: drawing 5 B numbers would take minutes.
    """
    part.to_empty(device="cpu")
    taken = 0
    for module in part.modules():
        match module:
            case nn.Linear() | nn.Conv2d():
                deviation = 1 / math.sqrt(module.weight[0].numel())
                taken += _stretch(module.weight, pool, taken, deviation)
                if module.bias is not None:
                    module.bias.data.zero_()
            case nn.Embedding():
                taken += _stretch(module.weight, pool, taken, 0.02)
            case nn.LayerNorm() | nn.GroupNorm():
                module.reset_parameters()
            case _:
                assert not list(module.parameters(recurse=False)), f"{type(module).__name__} is not filled"
    for name, buffer in part.named_buffers():
        assert name.endswith("position_ids"), f"{name} is not filled"
        buffer.copy_(torch.arange(buffer.numel()).expand(buffer.shape))


def _stretch(weight: torch.Tensor, pool: torch.Tensor, start: int, deviation: float) -> int:
    """Fill the weight from the pool, from `start` on and around as often as needed; returns its length."""
    source = (pool.roll(-(start % POOL)) * deviation).to(weight.dtype)
    flat = weight.data.view(-1)
    for piece in flat.split(POOL):
        piece.copy_(source[: len(piece)])
    return len(flat)


def _tokenizer(pad: str) -> CLIPTokenizer:
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=CLIP_TOKENS)
