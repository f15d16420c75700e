"""The plain way: what diffusers' DreamBooth script and stock pipelines do, written out in our own words.

Training: the VAE encodes in every step, in fp32; the prompt is encoded once; LoRA by PEFT in the base's
precision; AdamW by default, gradients clipped, the loss fetched in each step; no compilation. The script's
progress bar, log and accelerate wrappers are left out, which favours it. Drawing: one image at a time, base
and then refiner, each prompt encoded anew by both, the LoRA loaded by `load_lora_weights`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from harness.config.schema.training import TrainingConfig
from harness.diffusion.models.model import Row, SamplerSettings
from harness.diffusion.models.pipelines import Pipelines

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class PlainTraining:
    """A loop over the images, one call a step."""

    def __init__(self, pipelines: Pipelines, images: Sequence[Image.Image], training: TrainingConfig) -> None:
        base = pipelines.base
        self._unet, self._vae, self._device = base.unet, base.vae, base.device
        self._dtype = base.unet.dtype
        self._max_grad_norm = training.max_grad_norm
        self._scheduler = DDPMScheduler.from_config(base.scheduler.config)
        with torch.no_grad():
            self._embeds_1TD, _, self._pooled_1P, _ = base.encode_prompt(
                training.prompt, do_classifier_free_guidance=False
            )
        side = images[0].width
        self._time_ids_16 = torch.tensor([[side, side, 0, 0, side, side]], device=self._device)
        self.parameters = {n: p for n, p in sorted(self._unet.named_parameters()) if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=training.learning_rate,
            betas=training.optimizer.betas,
            weight_decay=training.optimizer.weight_decay,
        )
        pixels_N3HW = [_pixels(image) for image in images]
        self._loader: DataLoader[Tensor] = DataLoader(
            pixels_N3HW,  # type: ignore[arg-type, unused-ignore]
            batch_size=training.batch_size,
            shuffle=True,
        )
        self._batches = self._endless()

    def step(self) -> float:
        """One step with noise from the global generators; its loss."""
        pixels_B3HW = next(self._batches).to(self._device)
        with torch.no_grad():
            x0_BChw = self._vae.encode(pixels_B3HW).latent_dist.sample() * self._vae.config.scaling_factor
        noise_BChw = torch.randn_like(x0_BChw)
        steps = self._scheduler.config.num_train_timesteps
        timesteps_B = torch.randint(0, steps, (len(x0_BChw),), device=self._device)
        return self.update(x0_BChw, noise_BChw, timesteps_B)

    def update(self, x0_BChw: Tensor, noise_BChw: Tensor, timesteps_B: Tensor) -> float:
        """The step from its latents and noise on."""
        noisy_BChw = self._scheduler.add_noise(x0_BChw, noise_BChw, timesteps_B)
        rows = len(x0_BChw)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            predicted_BChw = self._unet(
                noisy_BChw,
                timesteps_B,
                self._embeds_1TD.repeat(rows, 1, 1),
                added_cond_kwargs={
                    "text_embeds": self._pooled_1P.repeat(rows, 1),
                    "time_ids": self._time_ids_16.repeat(rows, 1),
                },
            ).sample
        if self._scheduler.config.prediction_type == "v_prediction":
            target_BChw = self._scheduler.get_velocity(x0_BChw, noise_BChw, timesteps_B)
        else:
            target_BChw = noise_BChw
        loss = torch.nn.functional.mse_loss(predicted_BChw.float(), target_BChw.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def _endless(self) -> Iterator[Tensor]:
        while True:
            yield from self._loader


@contextmanager
def plain_training(
    pipelines: Pipelines, images: Sequence[Image.Image], training: TrainingConfig, *, rank: int
) -> Iterator[PlainTraining]:
    """The loop with a fresh LoRA in the UNet; on leaving, the model is what it was."""
    unet, vae = pipelines.base.unet, pipelines.base.vae
    dtype = vae.dtype
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION), "plain")
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns of parts kept in fp32: it has none
    try:
        yield PlainTraining(pipelines, images, training)
    finally:
        torch.nn.Module.to(vae, dtype)
        unet.unload_lora()
        unet._hf_peft_config_loaded = False  # unload_lora leaves None here
        if hasattr(unet, "peft_config"):
            del unet.peft_config


@contextmanager
def plain_lora(pipelines: Pipelines, adapter: Path) -> Iterator[None]:
    """The LoRA of this folder in the base, as the stock pipeline loads it."""
    pipelines.base.load_lora_weights(adapter)
    try:
        yield
    finally:
        pipelines.base.unload_lora_weights()
        if hasattr(pipelines.base.unet, "peft_config"):
            del pipelines.base.unet.peft_config


def plain_image(pipelines: Pipelines, row: Row, settings: SamplerSettings) -> Image.Image:
    """One image by the stock pipelines, in one go or handed over to the refiner."""
    shared = {
        "prompt": row.prompt,
        "negative_prompt": row.negative,
        "guidance_scale": row.guidance,
        "num_inference_steps": settings.steps,
        "generator": torch.Generator().manual_seed(row.seed),
    }
    if settings.refiner_start is None:
        return pipelines.base(**shared).images[0]
    assert pipelines.refiner is not None
    latents = pipelines.base(**shared, denoising_end=settings.refiner_start, output_type="latent").images
    side = pipelines.base.unet.config.sample_size * pipelines.base.vae_scale_factor
    return pipelines.refiner(
        **shared,
        latents=latents,
        image=torch.zeros(1, 3, side, side),  # unused beside latents, but asked for
        denoising_start=settings.refiner_start,
    ).images[0]


def _pixels(image: Image.Image) -> Tensor:
    pixels_HW3 = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32))
    return pixels_HW3.permute(2, 0, 1) / 127.5 - 1
