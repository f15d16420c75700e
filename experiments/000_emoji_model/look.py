"""A sheet of pictures from a checkpoint, to look at while the base is still learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import unet
import vae
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from subjects import BAD_WORDS

PROMPTS = (
    "a fox", "a pizza on a blue background", "a rocket at night", "a cactus, yellow background", "a panda",
    "a house on grass", "a strawberry on a beach", "a car on a white background", "a fox left of a hamburger",
    "a ghost right of a bus", "a noisy picture of a frog", "a guitar, blurry", "a robot, distorted",
    "a soccer ball in the sky", "a castle, pixelated", "an owl on a green background",
)  # fmt: skip


def sheet(work: Path, path: Path) -> None:
    """Two rows without a negative prompt, two with the keywords as negative prompt, from the same noise."""
    encoders, autoencoder = unet.load_encoders(work), vae.load(work)
    autoencoder.register_to_config(scaling_factor=float((work / "scaling.txt").read_text()))
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder, text_encoder=encoders.first, text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer, tokenizer_2=encoders.tokenizer, unet=unet.load(work),
        scheduler=unet.scheduler(), add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for negative in (None, [", ".join(BAD_WORDS)] * len(PROMPTS)):
        noise = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
        pictures = pipeline(
            list(PROMPTS), negative_prompt=negative, height=64, width=64, num_inference_steps=20,
            guidance_scale=4.0, generator=noise,
        ).images  # fmt: skip
        rows += [np.concatenate([np.asarray(p) for p in pictures[i : i + 8]], 1) for i in (0, 8)]
    Image.fromarray(np.concatenate(rows)).resize((8 * 128, 4 * 128), Image.Resampling.LANCZOS).save(path)
