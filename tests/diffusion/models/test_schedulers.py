"""Every sampler of the specification: alone as in a batch, and with a refiner or with a clear error."""

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
)

from harness.config.schema.evaluation import NO_HAND_OVER, Scheduler
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model, schedulers
from harness.diffusion.models.model import Model, Row, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.models.test_sdxl import difference, seeded, stock
from tests.diffusion.tiny import tiny_config, tiny_sdxl

NAMES: tuple[Scheduler, ...] = get_args(Scheduler)
FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=3.0)
CAR = replace(FOX, prompt="a car", seed=5, negative="")


@pytest.fixture(scope="module")
def sdxls_own(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model that predicts ε on SDXL's own schedule."""
    folder = tiny_sdxl(tmp_path_factory.mktemp("eps") / "sdxl", latent_channels=4, prediction_type="epsilon")
    return load_model(tiny_config(folder), device="cpu")


@pytest.fixture(scope="module")
def emoji() -> Model:
    return load_model(EmojiModel(), device="cpu")


def settings(name: Scheduler | None, *, refiner: bool) -> SamplerSettings:
    return SamplerSettings(steps=5, refiner_start=0.6 if refiner else None, scheduler=name)


@pytest.mark.parametrize("refiner", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_alone_and_in_a_batch(emoji: Model, name: Scheduler, refiner: bool):
    """Up to a few levels of 255: a batch's matrix products round differently from a single row's.

    By the trained model: with random weights PNDM makes 44 levels of a change of 1e-6 in one weight.
    """
    if refiner and name in NO_HAND_OVER:
        with pytest.raises(ModelError, match=rf"{name} cannot hand over .* refiner_start: null"):
            emoji.generate([CAR], settings(name, refiner=True))
        return
    together = emoji.generate([FOX, CAR], settings(name, refiner=refiner))
    [alone] = emoji.generate([CAR], settings(name, refiner=refiner))
    assert difference(together[1].image, alone.image) <= 5
    assert difference(together[0].image, alone.image) > 10


def test_each_sampler_draws_a_image_of_its_own(sdxls_own: Model):
    drawn = [sdxls_own.generate([FOX], settings(name, refiner=False))[0].image.tobytes() for name in NAMES]
    # DDPM's posterior step and Euler's ancestral one are one sampler in two notations.
    assert len(set(drawn)) >= len(NAMES) - 1
    [own] = sdxls_own.generate([FOX], settings(None, refiner=False))
    assert own.image.tobytes() == drawn[NAMES.index("EulerDiscreteScheduler")]


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_noise_is_drawn_as_the_stock_pipeline_draws_it(tiny_model: Model, tiny_folder: Path, kind: Any):
    pipeline = stock(tiny_folder)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, clip_sample=False)
    expected = pipeline(
        FOX.prompt, negative_prompt="wrong", num_inference_steps=5, guidance_scale=3.0, generator=seeded(3)
    ).images[0]
    [image] = tiny_model.generate([FOX], settings(kind.__name__, refiner=False))
    assert difference(image.image, expected) == 0


def denoise(name: Scheduler, *, handed_over: bool) -> torch.Tensor:
    """Numbers of a known normal distribution, denoised in one go, or in two as the pipelines share it."""
    own = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
    )
    levels = own.alphas_cumprod.numpy()

    def walk(scheduler: Any, timesteps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        extra = (
            {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        )
        for t in timesteps:
            alpha = float(np.interp(float(t), np.arange(1000), levels))
            noisy = scheduler.scale_model_input(x, t)
            epsilon = (noisy - alpha**0.5 * 0.5) * (1 - alpha) ** 0.5 / (alpha * 0.3**2 + 1 - alpha)
            x = scheduler.step(epsilon, t, x, **extra, return_dict=False)[0]
        return x

    generator = seeded(0)
    scheduler = schedulers.make(own, name)
    scheduler.set_timesteps(20)
    x = torch.randn(1, 1, 32, 32, generator=generator) * scheduler.init_noise_sigma
    cut = 200 if handed_over else 0
    x = walk(scheduler, scheduler.timesteps[scheduler.timesteps >= cut], x)
    if handed_over:
        refiner = schedulers.make(own, name)
        refiner.set_timesteps(20)
        pipeline: Any = SimpleNamespace(scheduler=refiner)
        rest, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(
            pipeline, 20, 0.3, "cpu", denoising_start=0.8
        )
        x = walk(refiner, rest, x)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_the_hand_over_is_at_one_noise_level_or_refused(name: Scheduler):
    """With one exact model for both stages, it must not matter where they hand over."""
    lost = (denoise(name, handed_over=True) - denoise(name, handed_over=False)).square().mean().sqrt().item()
    # A sampler of several steps starts anew at the refiner: 0.003 of data whose deviation is 0.3.
    assert lost > 0.02 if name in NO_HAND_OVER else lost < 0.003


def test_zero_terminal_snr_is_kept_where_a_sampler_bears_it(tiny_model: Model):
    own = tiny_model._own_scheduler  # type: ignore[attr-defined]
    assert own.config.rescale_betas_zero_snr
    for name in set(NAMES) - schedulers.NO_ZERO_SNR:
        made = schedulers.make(own, name)
        torch.testing.assert_close(made.alphas_cumprod[:-1], own.alphas_cumprod[:-1], rtol=1e-3, atol=1e-6)
        assert made.alphas_cumprod[-1] < 1e-6
        assert made.config.prediction_type == "v_prediction"


def test_both_stages_must_have_a_step(tiny_model: Model):
    few = SamplerSettings(steps=2, refiner_start=0.8)
    with pytest.raises(ModelError, match=r"steps: 2 with refiner_start: 0\.8 leaves no step to the refiner"):
        tiny_model.generate([FOX], few)
    with pytest.raises(ModelError, match="leaves no step to the base"):
        tiny_model.generate([FOX], replace(few, steps=6, refiner_start=0.0001))
