"""Between images and latents, in slices that fit in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from harness.diffusion.models.model import Posterior

PIXELS_AT_ONCE = 2**20  # one image of 1024 × 1024, whose activations take gigabytes; 256 of 64 × 64


def encode(pipeline: Any, images: Sequence[Image.Image]) -> Posterior:
    """VAE posterior in the UNet's units, fp32, of RGB images of one size, multiples of the VAE's factor."""
    width, height = images[0].size
    factor = pipeline.vae_scale_factor
    assert all(image.size == (width, height) for image in images), "images of one size are encoded together"
    assert width % factor == height % factor == 0, f"{width} × {height} px are not multiples of {factor}"
    means, stds = [], []
    with torch.no_grad(), _finite(pipeline.vae) as vae:
        for part in _slices(len(images), width * height):
            pixels = pipeline.image_processor.preprocess(list(images[part]))
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
    scale = pipeline.vae.config.scaling_factor
    return Posterior(mean_NChw=torch.cat(means) * scale, std_NChw=torch.cat(stds) * scale)


def decode(pipeline: Any, latents_NChw: torch.Tensor) -> torch.Tensor:
    """Images [N, 3, H, W] of numbers from 0 to 1, as the pipelines decode them."""
    pixels = latents_NChw.shape[-2] * latents_NChw.shape[-1] * pipeline.vae_scale_factor**2
    drawn = []
    with _finite(pipeline.vae) as vae:
        for part in _slices(len(latents_NChw), pixels):
            latents = latents_NChw[part].to(vae.dtype) / vae.config.scaling_factor
            decoded = vae.decode(latents, return_dict=False)[0]
            drawn.append(pipeline.image_processor.postprocess(decoded, output_type="pt"))
    return torch.cat(drawn)


def _slices(count: int, pixels: int) -> Iterator[slice]:
    """Never by the memory that happens to be free: an image's rounding would depend on it."""
    at_once = max(1, PIXELS_AT_ONCE // pixels)
    return (slice(start, start + at_once) for start in range(0, count, at_once))


@contextmanager
def _finite(vae: Any) -> Iterator[Any]:
    """The VAE, in fp32 where its configuration says that fp16 overflows (SDXL's own: black images)."""
    dtype = vae.dtype
    try:
        yield vae.to(torch.float32) if dtype == torch.float16 and vae.config.force_upcast else vae
    finally:
        vae.to(dtype)
