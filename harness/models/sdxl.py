"""SDXL and models of its classes, the embedded one among them, through stock diffusers pipelines."""

import functools
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.errors import ModelError
from harness.models import trainable
from harness.models.encoding import Encoded, PromptEncoder
from harness.models.loading import Pipelines
from harness.models.model import Conditioning, DrawSettings, Picture, Posterior, Row, RowAdapter
from harness.models.rowwise import LORA_FILE, Acting, Lora, acting, read_lora
from harness.models.spec import ModelSpec
from harness.spec.trial import AdapterSpec

CACHED_ADAPTERS = 8
ENCODED_AT_ONCE = 4  # pictures in one pass of the VAE's encoder


class Sdxl:
    """The `Model` of a base and, where there is one, its refiner. Adapters act on the base alone."""

    def __init__(self, spec: ModelSpec, pipelines: Pipelines, *, device: str | None) -> None:
        self.spec = spec
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._base = pipelines.base.to(self.device)
        self._refiner = None if pipelines.refiner is None else pipelines.refiner.to(self.device)
        self._unet = self._base.unet
        self.resolution: int = self._unet.config.sample_size * self._base.vae_scale_factor
        self._words = PromptEncoder(self._base)
        self._refiner_words = None if self._refiner is None else PromptEncoder(self._refiner)
        self._read = functools.lru_cache(maxsize=CACHED_ADAPTERS)(self._read_lora)

    def draw(self, rows: Sequence[Row], settings: DrawSettings) -> list[Picture]:
        """Pictures in the order of the rows; rows of one guidance scale are one batch.

        The batch is the caller's to choose. Alone or in a batch, a picture is the same up to the rounding of
        differently shaped matrix products. Raises ModelError for what cannot be drawn, and where a picture
        is not finite, naming the rows.
        """
        assert not trainable.is_attached(self._unet), (
            "pictures are drawn with row-wise adapters, outside attach"
        )
        pictures: dict[int, Picture] = {}
        for guidance in dict.fromkeys(row.guidance for row in rows):
            places = [place for place, row in enumerate(rows) if row.guidance == guidance]
            drawn = self._draw_batch([rows[place] for place in places], guidance, settings)
            pictures.update(zip(places, drawn, strict=True))
        return [pictures[place] for place in range(len(rows))]

    def encode_images(self, images: Sequence[Image.Image]) -> Posterior:
        """VAE posterior in the UNet's units, fp32, on the model's device."""
        size = (self.resolution, self.resolution)
        assert all(image.size == size for image in images), f"pictures must be {size[0]} × {size[1]}"
        vae, dtype = self._base.vae, self._base.vae.dtype
        upcast = dtype == torch.float16 and vae.config.force_upcast  # SDXL's own VAE overflows in fp16
        means, stds = [], []
        try:
            vae.to(dtype=torch.float32 if upcast else dtype)
            with torch.no_grad():
                for start in range(0, len(images), ENCODED_AT_ONCE):
                    pixels = self._base.image_processor.preprocess(
                        list(images[start : start + ENCODED_AT_ONCE])
                    )
                    posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
                    means.append(posterior.mean.float())
                    stds.append(posterior.std.float())
        finally:
            vae.to(dtype=dtype)
        scale = vae.config.scaling_factor
        return Posterior(mean_NChw=torch.cat(means) * scale, std_NChw=torch.cat(stds) * scale)

    def condition(self, prompt: str) -> Conditioning:
        """Text conditioning of one prompt, for an uncropped picture of the model's own resolution."""
        encoded = self._words.positive(prompt)
        side = float(self.resolution)
        time_ids = torch.tensor(
            [[side, side, 0.0, 0.0, side, side]], device=self.device, dtype=encoded.embeds_1TD.dtype
        )
        return Conditioning(
            prompt_embeds_1TD=encoded.embeds_1TD, pooled_1P=encoded.pooled_1P, time_ids_16=time_ids
        )

    def attach(self, adapter: AdapterSpec, seed: int) -> AbstractContextManager[trainable.TrainableLora]:
        """A fresh adapter to train; see `trainable.attach`."""
        return trainable.attach(self._unet, adapter, seed)

    def noise_schedule(self) -> tuple[torch.Tensor, str]:
        """`alphas_cumprod` (with zero terminal SNR, Euler makes the last 2⁻²⁴) and the prediction type."""
        scheduler = self._base.scheduler
        return scheduler.alphas_cumprod.detach().to(
            "cpu", torch.float32, copy=True
        ), scheduler.config.prediction_type

    def save_adapter(
        self, state: dict[str, torch.Tensor], adapter: AdapterSpec, folder: Path, metadata: dict[str, str]
    ) -> None:
        """Write `pytorch_lora_weights.safetensors`; see `trainable.save_adapter`."""
        trainable.save_adapter(state, adapter, folder, metadata)

    def _draw_batch(self, rows: Sequence[Row], guidance: float, settings: DrawSettings) -> list[Picture]:
        if settings.refiner_start is not None and self._refiner is None:
            raise ModelError(
                "the model has no refiner; set refiner_start: null where it is drawn, or model.refiner"
            )
        noise_NChw = torch.cat([self._starting_latents(row.seed) for row in rows])
        guided = guidance > 1  # as the pipelines have it
        adapters = self._acting(rows, guided=guided)
        words = _stage_words(self._words, rows, guided=guided)
        shared: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": settings.steps}
        with torch.inference_mode():
            latents = noise_NChw.to(self.device, self._unet.dtype)
            with acting(self._unet, adapters):
                drawn = self._base(
                    **words,
                    **shared,
                    latents=latents,
                    denoising_end=settings.refiner_start,
                    output_type="pt" if settings.refiner_start is None else "latent",
                ).images
            if settings.refiner_start is not None:
                drawn = self._refine(rows, drawn, settings.refiner_start, guided=guided, shared=shared)
        return _pictures(rows, drawn, noise_NChw)

    def _refine(
        self,
        rows: Sequence[Row],
        latents: torch.Tensor,
        start: float,
        *,
        guided: bool,
        shared: dict[str, Any],
    ) -> torch.Tensor:
        assert self._refiner is not None and self._refiner_words is not None
        return self._refiner(
            **_stage_words(self._refiner_words, rows, guided=guided),
            **shared,
            image=torch.zeros(1, 3, self.resolution, self.resolution),  # unused beside latents, but asked for
            latents=latents,  # not as `image`, which the pipeline takes for pixels unless it has 4 channels
            denoising_start=start,
            output_type="pt",
        ).images

    def _starting_latents(self, seed: int) -> torch.Tensor:
        """Unit noise of one picture, fp32 from a CPU generator, so that it depends on the seed alone."""
        side = self._unet.config.sample_size
        shape = (1, self._unet.config.in_channels, side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    def _acting(self, rows: Sequence[Row], *, guided: bool) -> list[Acting]:
        """The adapters of every row of the guidance batch, negative rows first, as in the pipelines."""
        if not guided and any(adapter.branch == "negative" for row in rows for adapter in row.adapters):
            raise ModelError(
                "guidance of at most 1 draws no negative rows, so an adapter on branch negative cannot act"
            )
        branches = ("negative", "positive") if guided else ("positive",)
        return [
            [
                (self._lora(adapter), adapter.scale)
                for adapter in row.adapters
                if adapter.branch in (branch, "both")
            ]
            for branch in branches
            for row in rows
        ]

    def _lora(self, adapter: RowAdapter) -> Lora:
        file = adapter.path / LORA_FILE
        return self._read(adapter.path, file.stat().st_mtime_ns if file.is_file() else 0)

    def _read_lora(self, folder: Path, _written_at: int) -> Lora:
        return read_lora(folder, device=self.device, dtype=self._unet.dtype)


def _stage_words(
    encoder: PromptEncoder, rows: Sequence[Row], *, guided: bool
) -> dict[str, torch.Tensor | None]:
    """The pipelines' text arguments for one stage, base or refiner."""

    def stacked(encoded: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([e.embeds_1TD for e in encoded]), torch.cat([e.pooled_1P for e in encoded])

    embeds, pooled = stacked([encoder.positive(row.prompt) for row in rows])
    words: dict[str, torch.Tensor | None] = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if guided:
        embeds, pooled = stacked([encoder.negative(row.negative) for row in rows])
        words.update(negative_prompt_embeds=embeds, negative_pooled_prompt_embeds=pooled)
    return words


def _pictures(rows: Sequence[Row], drawn_N3HW: torch.Tensor, noise_NChw: torch.Tensor) -> list[Picture]:
    lost = [row for row, picture in zip(rows, drawn_N3HW, strict=True) if not torch.isfinite(picture).all()]
    if lost:
        named = "; ".join(f"{row.prompt!r} seed {row.seed}" for row in lost[:3])
        raise ModelError(
            f"{len(lost)} of {len(rows)} pictures are not finite ({named}). SDXL's VAE overflows in fp16: "
            "set model.vae: madebyollin/sdxl-vae-fp16-fix, or model.precision: bf16"
        )
    pixels_NHW3 = (drawn_N3HW.float().permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8).numpy()
    return [
        Picture(
            image=Image.fromarray(np.ascontiguousarray(pixels)),
            latent_hash=hashlib.sha256(noise.numpy().tobytes()).hexdigest(),
        )
        for pixels, noise in zip(pixels_NHW3, noise_NChw, strict=True)
    ]
