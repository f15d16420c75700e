"""A tiny SDXL, built in about a second: the real classes in the real folder layout, random seeded weights.

`tiny_sdxl(folder)` writes the base into `folder` and a refiner beside it (`refiner_folder(folder)`); like
SDXL's, the refiner has only the second text encoder and aesthetic-score conditioning. 64 px, VAE factor 8,
8 latent channels, v-prediction with zero terminal SNR, like the embedded model.
"""

import os
from pathlib import Path

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.logging import disable_progress_bar
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from harness.config.schema.model import SdxlModel

SENTENCE = (
    "a an of on and the in left right red blue green yellow fox cat dog hat tree cup fish bird car star moon "
    "photo image bad good wrong ugly blurry noisy grainy low quality jpeg artifacts watermark distorted"
)
WORDS = SENTENCE.split()


def tiny_sdxl(folder: Path, *, latent_channels: int = 8, prediction_type: str = "v_prediction") -> Path:
    """Write a tiny base into `folder` and its refiner beside it; returns `folder`."""
    disable_progress_bar()
    disable_transformers_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae, text_encoder_2 = _vae(latent_channels), _text_encoder_2()
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing" if prediction_type == "v_prediction" else "leading",
            rescale_betas_zero_snr=prediction_type == "v_prediction",
            prediction_type=prediction_type,
        )
        shared = {"vae": vae, "text_encoder_2": text_encoder_2, "scheduler": scheduler}
        StableDiffusionXLPipeline(
            **shared,
            tokenizer=_tokenizer("<|endoftext|>"),
            tokenizer_2=_tokenizer("!"),
            text_encoder=_text_encoder(),
            unet=_unet(latent_channels, width=16 + 24, time_ids=6),
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ).save_pretrained(folder)
        StableDiffusionXLImg2ImgPipeline(
            **shared,
            tokenizer=None,
            tokenizer_2=_tokenizer("!"),
            text_encoder=None,
            unet=_unet(latent_channels, width=24, time_ids=5),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ).save_pretrained(refiner_folder(folder))
    return folder


def refiner_folder(folder: Path) -> Path:
    """Where `tiny_sdxl(folder)` puts the refiner."""
    return folder.with_name(f"{folder.name}-refiner")


def tiny_config(folder: Path, *, refiner: bool = True) -> SdxlModel:
    """The specification that loads what `tiny_sdxl(folder)` wrote."""
    return SdxlModel(
        source=str(folder),
        refiner=str(refiner_folder(folder)) if refiner else None,
        vae=None,
        variant=None,
        precision="fp32",
    )


def _tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's byte-level BPE with so few merges that only WORDS are single tokens."""
    letters = [*"!\"#$%&'()*+,-./0123456789:;<=>?@[]^_`abcdefghijklmnopqrstuvwxyz{|}~"]
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            merges[symbols[0], symbols[1]] = None
            symbols[:2] = ["".join(symbols[:2])]
            pieces[symbols[0]] = None
    vocabulary = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        merges=list(merges),
        pad_token=pad,
        model_max_length=77,
    )


def _text_config(width: int, projection: int) -> CLIPTextConfig:
    tokenizer = _tokenizer("!")
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_factor=10.0,  # words must differ visibly
    )


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel(_text_config(16, 16))


def _text_encoder_2() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_text_config(24, 20))


def _unet(latent_channels: int, *, width: int, time_ids: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 8 * time_ids,
    )
    for name, parameter in unet.named_parameters():
        if ".to_v." in name or (".to_out." in name and parameter.ndim == 2):
            parameter.data *= 6  # attention must matter, so that words and adapters are seen
    # Guidance makes a random network chaotic; at full strength rounding would decide the image.
    unet.conv_out.weight.data *= 0.1
    return unet.eval()


def _vae(latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        latent_channels=latent_channels,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()
