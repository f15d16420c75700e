"""SDXL and models of its classes, the embedded one among them, through stock diffusers pipelines."""

import functools
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.config.schema.adapter import AdapterConfig
from harness.config.schema.evaluation import (
    PROMPT,
    Branch,
    MergeConfig,
    Scheduler,
    negative_text,
    plain_negative,
)
from harness.config.schema.model import ModelConfig
from harness.diffusion.adapters.adapter import Adapter
from harness.diffusion.adapters.apply import Acting, acting
from harness.diffusion.adapters.files import read_adapter, save_adapter
from harness.diffusion.adapters.merge import merged
from harness.diffusion.models import schedulers, vae
from harness.diffusion.models.attach import TrainablePack, attach, is_attached
from harness.diffusion.models.guidance import BaseRow, Guidance
from harness.diffusion.models.model import Fresh, GeneratedImage, Posterior, Row, SamplerSettings, Texts
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.text_encoding import Adapters, Encoded, PromptEncoder, StoredTexts
from harness.errors import ModelError

CACHED_ADAPTERS = 8
IMAGES_PER_BATCH = 8  # on a CPU, where more are hardly faster
PIXELS_AT_ONCE = 2**20  # on a CPU, whose free memory is not ours to count on
MOST_AT_ONCE = 64  # on a GPU, which is busy by then
FREE_SHARE = 0.8  # of the free memory, for what the allocator loses between blocks
PROBE_STEPS = 2
NOT_FINITE = "Try a smaller scale of their adapters, another scheduler, or model.prediction_type"

Stamp = tuple[tuple[str, int, int], ...]


class Sdxl:
    """The `Model` of a base and, where there is one, its refiner. Adapters act on the base alone."""

    def __init__(self, config: ModelConfig, pipelines: Pipelines, *, device: str | None) -> None:
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._base = pipelines.base.to(self.device)
        self._refiner = None if pipelines.refiner is None else pipelines.refiner.to(self.device)
        self._unet = self._base.unet
        if self.device.type == "cuda":  # the layout of pixels that half precision's convolutions work in
            for pipeline in (self._base, self._refiner):
                if pipeline is not None:
                    pipeline.unet.to(memory_format=torch.channels_last)
        self._own_scheduler = self._base.scheduler
        self.scheduler: Scheduler = schedulers.own_name(self._own_scheduler, "the model")
        self.resolution: int = self._unet.config.sample_size * self._base.vae_scale_factor
        self._words = PromptEncoder(self._base, acts=True)
        self._refiner_words = None if self._refiner is None else PromptEncoder(self._refiner, acts=False)
        words = {"base": self._words, "refiner": self._refiner_words}
        self.texts: Texts = StoredTexts(
            {name: encoder for name, encoder in words.items() if encoder is not None}
        )
        self._read = functools.lru_cache(maxsize=CACHED_ADAPTERS)(self._read_adapter)
        self._merged = functools.lru_cache(maxsize=CACHED_ADAPTERS)(self._merge)
        self._at_once: dict[SamplerSettings, int] = {}

    def generate(self, rows: Sequence[Row], settings: SamplerSettings) -> list[GeneratedImage]:
        """Images in the order of the rows; rows of one guidance are one batch.

        The batch is the caller's to choose. Alone or in a batch, an image is the same up to the rounding of
        differently shaped matrix products. Raises ModelError for unsupported rows, where memory runs out,
        and where an image is not finite, naming the rows.
        """
        assert not is_attached(self._base), "images are generated with row-wise adapters, outside attach"
        self._check(settings)
        images: dict[int, GeneratedImage] = {}
        for guidance in dict.fromkeys(map(_guidance_of, rows)):
            places = [place for place, row in enumerate(rows) if _guidance_of(row) == guidance]
            try:
                drawn = self._generate_batch([rows[place] for place in places], settings)
            except torch.OutOfMemoryError as error:
                raise ModelError(
                    f"{len(places)} images at once do not fit in the memory of {self.device}; "
                    "set compute.batch_size or sampler.size smaller, or model.precision to fp16 or bf16"
                ) from error
            images.update(zip(places, drawn, strict=True))
        return [images[place] for place in range(len(rows))]

    def images_per_batch(self, settings: SamplerSettings) -> int:
        """A power of two, so that a little more or less of free memory changes nothing; measured once."""
        if self.device.type != "cuda":
            width, height = settings.size or (self.resolution, self.resolution)
            return max(1, min(IMAGES_PER_BATCH, PIXELS_AT_ONCE // (width * height)))
        if settings not in self._at_once:
            self._at_once[settings] = self._measured_at_once(settings)
        return self._at_once[settings]

    def encode_images(self, images: Sequence[Image.Image]) -> Posterior:
        """VAE posterior in the UNet's units, fp32, on the model's device."""
        return vae.encode(self._base, images)

    def attach(
        self, fresh: Sequence[Fresh], *, checkpointing: bool = False, compiled: bool = False
    ) -> AbstractContextManager[TrainablePack]:
        """Fresh adapters to train; see `trainable.attach`."""
        return attach(self._base, fresh, checkpointing=checkpointing, compiled=compiled)

    def noise_schedule(self) -> tuple[torch.Tensor, str]:
        """`alphas_cumprod` (with zero terminal SNR, Euler makes the last 2⁻²⁴) and the prediction type."""
        scheduler = self._own_scheduler
        return scheduler.alphas_cumprod.detach().to(
            "cpu", torch.float32, copy=True
        ), scheduler.config.prediction_type

    def save_adapter(
        self, state: dict[str, torch.Tensor], adapter: AdapterConfig, folder: Path, metadata: dict[str, str]
    ) -> None:
        """Write the adapter's file; see `adapter_file.save_adapter`."""
        save_adapter(state, adapter, folder, metadata)

    def _check(self, settings: SamplerSettings) -> None:
        factor = self._base.vae_scale_factor
        if settings.size is not None and any(side % factor for side in settings.size):
            raise ModelError(
                f"size {settings.size} must be multiples of {factor}, the factor of the model's VAE"
            )
        if settings.refiner_start is None:
            return
        if self._refiner is None:
            raise ModelError("the model has no refiner; set refiner_start: null there, or model.refiner")
        schedulers.check_hand_over(
            self._own_scheduler, settings.scheduler, steps=settings.steps, start=settings.refiner_start
        )

    def _generate_batch(self, rows: Sequence[Row], settings: SamplerSettings) -> list[GeneratedImage]:
        """Rows of one guidance. The seed's generator gives the first latents, then the sampler's noise."""
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        noise_NChw = self._starting_latents(generators, settings)
        latents, measured = self._denoised(rows, noise_NChw, generators, settings)
        with torch.inference_mode():
            images = _images(rows, vae.decode(self._base, latents), noise_NChw)
        for place, (effective, orthogonal) in measured.items():
            if np.isfinite([effective, orthogonal]).all():
                images[place] = replace(
                    images[place], effective_guidance=effective, orthogonal_share=orthogonal
                )
        return images

    def _starting_latents(
        self, generators: Sequence[torch.Generator], settings: SamplerSettings
    ) -> torch.Tensor:
        """Unit noise, fp32 from CPU generators, so that it depends on the seed and the size alone."""
        width, height = settings.size or (self.resolution, self.resolution)
        factor = self._base.vae_scale_factor
        shape = (1, self._unet.config.in_channels, height // factor, width // factor)
        return torch.cat([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])

    def _denoised(
        self,
        rows: Sequence[Row],
        noise_NChw: torch.Tensor,
        generators: list[torch.Generator],
        settings: SamplerSettings,
    ) -> tuple[torch.Tensor, dict[int, tuple[float, float]]]:
        """The last latents, and what `Guidance.measured` gives of them."""
        guided = rows[0].guidance > 1  # as the pipelines have it
        adapters = self._acting(rows, guided=guided)
        words = self._stage_words(self._words, rows, guided=guided)
        height, width = (side * self._base.vae_scale_factor for side in noise_NChw.shape[-2:])
        shared: dict[str, Any] = {
            "guidance_scale": rows[0].guidance,
            "num_inference_steps": settings.steps,
            "generator": generators,
            "output_type": "latent",
        }
        self._base.scheduler = schedulers.make(self._own_scheduler, settings.scheduler)
        guidance = self._guidance(rows, settings) if guided else None
        with torch.inference_mode():
            with ExitStack() as stack:
                more = () if guidance is None else guidance.base_rows
                stack.enter_context(acting(self._unet, [*adapters, *([] for _ in more)]))
                if guidance is not None:
                    stack.enter_context(guidance.acts_on_base(self._unet))
                latents = self._base(
                    **words,
                    **shared,
                    height=height,
                    width=width,
                    latents=noise_NChw.to(self.device, self._unet.dtype),
                    denoising_end=settings.refiner_start,
                ).images
            if settings.refiner_start is not None:
                latents = self._refined(rows, latents, guidance, settings, shared=shared)
        return latents, {} if guidance is None else guidance.measured()

    def _refined(
        self,
        rows: Sequence[Row],
        latents: torch.Tensor,
        guidance: Guidance | None,
        settings: SamplerSettings,
        *,
        shared: dict[str, Any],
    ) -> torch.Tensor:
        assert self._refiner is not None and self._refiner_words is not None
        self._refiner.scheduler = schedulers.make(self._own_scheduler, settings.scheduler)
        plain = [replace(row, negative=plain_negative(row.negative)) for row in rows]
        with nullcontext() if guidance is None else guidance.acts_on_refiner(self._refiner.unet):
            return self._refiner(
                **self._stage_words(self._refiner_words, plain, guided=guidance is not None),
                **shared,
                image=torch.zeros(1, 3, self.resolution, self.resolution),  # unused beside latents, but asked
                latents=latents,  # not as `image`, which the pipeline takes for pixels unless of 4 channels
                denoising_start=settings.refiner_start,
            ).images

    def _guidance(self, rows: Sequence[Row], settings: SamplerSettings) -> Guidance:
        """The batch's guidance; a measured row has the base's predictions added that the batch lacks."""
        scheduler = schedulers.make(self._own_scheduler, settings.scheduler)
        scheduler.set_timesteps(settings.steps)
        more = []
        for place, row in enumerate(rows):
            if row.measured and (self._on(row, "negative") or PROMPT in row.negative):
                negative = self._words.negative(plain_negative(row.negative))
                more.append(BaseRow(image=place, positive=False, encoded=negative))
            if row.measured and self._on(row, "positive"):
                positive = self._words.positive(row.prompt)
                more.append(BaseRow(image=place, positive=True, encoded=positive))
        return Guidance(rows=rows, settings=settings, calls=len(scheduler.timesteps), base_rows=more)

    def _stage_words(
        self, encoder: PromptEncoder, rows: Sequence[Row], *, guided: bool
    ) -> dict[str, torch.Tensor | None]:
        """The pipelines' text arguments for one stage, base or refiner."""

        def stacked(encoded: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([e.embeds_1TD for e in encoded]), torch.cat([e.pooled_1P for e in encoded])

        embeds, pooled = stacked([encoder.positive(row.prompt, self._on(row, "positive")) for row in rows])
        words: dict[str, torch.Tensor | None] = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if guided:
            negatives = [
                encoder.negative(negative_text(row.negative, row.prompt), self._on(row, "negative"))
                for row in rows
            ]
            embeds, pooled = stacked(negatives)
            words.update(negative_prompt_embeds=embeds, negative_pooled_prompt_embeds=pooled)
        return words

    def _acting(self, rows: Sequence[Row], *, guided: bool) -> list[Acting]:
        """The adapters of every row of the guidance batch, negative rows first, as in the pipelines."""
        if not guided and any(adapter.branch == "negative" for row in rows for adapter in row.adapters):
            raise ModelError(
                "at a guidance of at most 1 no negative rows are computed, so an adapter on branch negative "
                "cannot act"
            )
        branches: tuple[Branch, ...] = ("negative", "positive") if guided else ("positive",)
        return [
            [(adapter.unet, scale) for adapter, scale in self._on(row, branch) if adapter.unet]
            for branch in branches
            for row in rows
        ]

    def _on(self, row: Row, branch: Branch) -> Adapters:
        """What acts on one branch of a row, merged into one where the row says so."""
        acts = [adapter for adapter in row.adapters if adapter.branch in (branch, "both")]
        files = tuple((adapter.path, _stamp(adapter.path), adapter.scale) for adapter in acts)
        if row.merge is not None and files:
            return ((self._merged(files, row.merge), 1.0),)
        return tuple((self._read(path, stamp), scale) for path, stamp, scale in files)

    def _merge(self, files: tuple[tuple[Path, Stamp, float], ...], merge: MergeConfig) -> Adapter:
        return merged([(self._read(path, stamp), scale) for path, stamp, scale in files], merge)

    def _read_adapter(self, path: Path, _stamp: Stamp) -> Adapter:
        return read_adapter(path, device=self.device, dtype=self._unet.dtype)

    def _measured_at_once(self, settings: SamplerSettings) -> int:
        """From what two rows of a short image cost, above what lies in memory anyhow.

        The VAE is left out: it decodes in slices, after the UNets have given their memory back.
        """
        rows = [Row(prompt="", negative="", seed=seed, guidance=2.0) for seed in (0, 1)]
        short = replace(settings, steps=PROBE_STEPS, refiner_start=None, scheduler=None)
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            self._denoised(rows, self._starting_latents(generators, short), generators, short)
        except torch.OutOfMemoryError:
            return 1
        cost = (torch.cuda.max_memory_allocated(self.device) - before) / len(rows)
        fitting = int(free * FREE_SHARE / cost)
        return 1 << (min(max(fitting, 1), MOST_AT_ONCE).bit_length() - 1)


def _guidance_of(row: Row) -> tuple[Any, ...]:
    """What the rows of a batch have in common."""
    return row.guidance, row.guidance_interval, row.guider


def _stamp(path: Path) -> Stamp:
    """What changes when an adapter is written anew in the same place."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file())


def _images(rows: Sequence[Row], drawn_N3HW: torch.Tensor, noise_NChw: torch.Tensor) -> list[GeneratedImage]:
    lost = [row for row, image in zip(rows, drawn_N3HW, strict=True) if not torch.isfinite(image).all()]
    if lost:
        named = "; ".join(f"{row.prompt!r} seed {row.seed}" for row in lost[:3])
        half = drawn_N3HW.dtype == torch.float16
        raise ModelError(
            f"{len(lost)} of {len(rows)} images are not finite ({named}). "
            + (
                "Set model.precision: bf16, or model.vae: madebyollin/sdxl-vae-fp16-fix"
                if half
                else NOT_FINITE
            )
        )
    pixels_NHW3 = (drawn_N3HW.float().permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8).numpy()
    return [
        GeneratedImage(
            image=Image.fromarray(np.ascontiguousarray(pixels)),
            latent_hash=hashlib.sha256(noise.numpy().tobytes()).hexdigest(),
        )
        for pixels, noise in zip(pixels_NHW3, noise_NChw, strict=True)
    ]
