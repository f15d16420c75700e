"""Drawn pictures for the judges to learn from: what damage looks like on them, not only on scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import unet
import vae
from common import Threads, device
from diffusers import StableDiffusionXLPipeline
from subjects import BAD_WORDS
from world import World, describe

GUIDANCE, STEPS, BATCH = 4.0, 20, 16
FIRST_SEED = 10_000_000  # evaluation starts its noise far below


def pipeline(work: Path) -> StableDiffusionXLPipeline:
    """The base from its last checkpoint."""
    encoders, autoencoder = unet.load_encoders(work), vae.load(work)
    autoencoder.register_to_config(scaling_factor=float((work / "scaling.txt").read_text()))
    made = StableDiffusionXLPipeline(
        vae=autoencoder, text_encoder=encoders.first, text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer, tokenizer_2=encoders.tokenizer, unet=unet.load(work),
        scheduler=unet.scheduler(), add_watermarker=False,
    ).to(device())  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def make(world: World, work: Path, size: int, seed: int = 71) -> None:
    """Write drawn.npy unless it is there: pictures as clean as guidance away from the bad words makes them.

    Goes on from the last full part.
    """
    path, parts = work / "drawn.npy", work / "drawn"
    if path.exists():
        return
    parts.mkdir(exist_ok=True)
    made, threads = pipeline(work), Threads()
    negative = [", ".join(BAD_WORDS)] * BATCH
    for start in range(0, size, BATCH):
        if (parts / f"{start}.npy").exists():
            continue
        threads.adapt()
        rng = np.random.default_rng((seed, start))
        prompts = []
        for _ in range(BATCH):
            count = 2 if rng.random() < 0.2 else 1
            subjects = [str(name) for name in rng.choice(world.names, count, replace=False)]
            prompts.append(describe(subjects, world.backdrop(rng), rng))
        noise = [torch.Generator().manual_seed(FIRST_SEED + start + i) for i in range(BATCH)]
        images = made(
            prompts, negative_prompt=negative, height=64, width=64, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, generator=noise,
        ).images  # fmt: skip
        np.save(parts / "new.npy", np.stack([np.asarray(image.convert("RGB")) for image in images]))
        (parts / "new.npy").replace(parts / f"{start}.npy")
    np.save(path, np.concatenate([np.load(parts / f"{start}.npy") for start in range(0, size, BATCH)]))
