"""A sheet of pictures from a checkpoint, to look at while the base is still learning."""

from __future__ import annotations

from pathlib import Path

import draw
import numpy as np
import torch
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
    made = draw.pipeline(work)
    rows = []
    for negative in (None, [", ".join(BAD_WORDS)] * len(PROMPTS)):
        noise = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
        pictures = made(
            list(PROMPTS), negative_prompt=negative, height=64, width=64, num_inference_steps=20,
            guidance_scale=4.0, generator=noise,
        ).images  # fmt: skip
        rows += [np.concatenate([np.asarray(p) for p in pictures[i : i + 8]], 1) for i in (0, 8)]
    Image.fromarray(np.concatenate(rows)).resize((8 * 128, 4 * 128), Image.Resampling.LANCZOS).save(path)
