import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compel import CompelForSDXL
from diffusers import DDPMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model, Row, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.tiny import refiner_folder, tiny_sdxl
from tests.diffusion.tiny import tiny_config as spec_of

BASE_ALONE = SamplerSettings(steps=6, refiner_start=None)
WITH_REFINER = SamplerSettings(steps=10, refiner_start=0.8)
FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two images, in levels of 255."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of their numbers, in levels of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def stock(folder: Path, kind: Any = StableDiffusionXLPipeline) -> Any:
    """A stock pipeline, silent."""
    pipeline = kind.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_what_a_stock_pipeline_draws(tiny_model: Model, tiny_folder: Path):
    expected = stock(tiny_folder)(
        FOX.prompt,
        negative_prompt=FOX.negative,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    [image] = tiny_model.generate([FOX], BASE_ALONE)
    assert difference(image.image, expected) == 0
    assert image.image.size == (64, 64) and image.image.mode == "RGB"


def test_hands_over_to_the_refiner_as_the_stock_pipelines_do(tmp_path: Path):
    # Four latent channels: with eight the stock refiner takes latents given as `image` for pixels.
    folder = tiny_sdxl(tmp_path / "sdxl", latent_channels=4, prediction_type="epsilon")
    words = {
        "prompt": FOX.prompt,
        "negative_prompt": FOX.negative,
        "num_inference_steps": 10,
        "guidance_scale": 5.0,
    }
    latents = stock(folder)(**words, generator=seeded(3), denoising_end=0.8, output_type="latent").images
    refiner = stock(refiner_folder(folder), StableDiffusionXLImg2ImgPipeline)
    expected = refiner(**words, image=latents, denoising_start=0.8).images[0]
    model = load_model(spec_of(folder), device="cpu")
    [image] = model.generate([FOX], WITH_REFINER)
    assert difference(image.image, expected) == 0
    [alone] = model.generate([FOX], replace(WITH_REFINER, refiner_start=None))
    assert difference(image.image, alone.image) > 0


def test_a_refiner_may_leave_out_what_it_shares_with_the_base(tiny_model: Model, tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    index = refiner_folder(folder) / "model_index.json"
    parts = json.loads(index.read_text())
    for shared in ("vae", "text_encoder_2", "tokenizer_2"):
        shutil.rmtree(refiner_folder(folder) / shared)
        parts[shared] = [None, None]
    index.write_text(json.dumps(parts))
    [image] = load_model(spec_of(folder), device="cpu").generate([FOX], WITH_REFINER)
    [whole] = tiny_model.generate([FOX], WITH_REFINER)
    assert difference(image.image, whole.image) == 0


@pytest.mark.parametrize("zeros", [True, False])
def test_empty_negative_is_the_pipelines_missing_negative(tmp_path: Path, zeros: bool):
    folder = tiny_sdxl(tmp_path / "sdxl")
    index = folder / "model_index.json"
    index.write_text(
        index.read_text().replace(
            '"force_zeros_for_empty_prompt": false', f'"force_zeros_for_empty_prompt": {str(zeros).lower()}'
        )
    )
    pipeline = stock(folder)
    assert pipeline.config.force_zeros_for_empty_prompt == zeros
    expected = pipeline(FOX.prompt, num_inference_steps=6, guidance_scale=5.0, generator=seeded(3)).images[0]
    model = load_model(spec_of(folder, refiner=False), device="cpu")
    [image] = model.generate([replace(FOX, negative="")], BASE_ALONE)
    assert difference(image.image, expected) == 0


def test_a_image_is_the_same_alone_and_in_a_batch(tiny_model: Model):
    rows = [
        replace(FOX, prompt=prompt, seed=seed, guidance=guidance, negative=negative)
        for prompt, seed, guidance, negative in [
            ("a fox", 0, 5.0, "wrong"),
            ("a blue (cat)++", 1, 8.0, ""),
            ("a fox", 2, 5.0, "(blurry)++++"),
            ("a green bird", 0, 1.0, ""),
            ("a car", 4, 8.0, "bad quality"),
        ]
    ]
    together = tiny_model.generate(rows, WITH_REFINER)
    alone = [tiny_model.generate([row], WITH_REFINER)[0] for row in rows]
    # A batch's matrix products round differently from a single row's: at most two levels of 255.
    assert max(difference(a.image, b.image) for a, b in zip(together, alone, strict=True)) <= 2
    assert [a.latent_hash for a in together] == [b.latent_hash for b in alone]
    assert difference(together[0].image, together[2].image) > 10


def test_drawing_twice_gives_the_same_bytes(tiny_model: Model):
    rows = [FOX, replace(FOX, seed=4)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tiny_model.generate(rows, WITH_REFINER)
    second = tiny_model.generate(rows, WITH_REFINER)
    assert [p.image.tobytes() for p in first] == [p.image.tobytes() for p in second]
    assert torch.equal(before, torch.get_rng_state())


def test_latent_hash_is_that_of_the_seeds_unit_noise(tiny_model: Model):
    images = tiny_model.generate(
        [FOX, replace(FOX, negative="", guidance=2.0), replace(FOX, seed=4)], BASE_ALONE
    )
    noise = torch.randn(1, 8, 8, 8, generator=seeded(3))
    assert images[0].latent_hash == hashlib.sha256(noise.numpy().tobytes()).hexdigest()
    assert images[0].latent_hash == images[1].latent_hash != images[2].latent_hash


def test_without_guidance_the_negative_prompt_is_nothing(tiny_model: Model):
    one, other = tiny_model.generate(
        [replace(FOX, guidance=1.0), replace(FOX, guidance=1.0, negative="blurry")], BASE_ALONE
    )
    assert difference(one.image, other.image) <= 1


def test_weights_are_compels(tiny_model: Model, tiny_folder: Path):
    pipeline = stock(tiny_folder)
    compel = CompelForSDXL(pipeline)
    encoded = compel("a (red)++++ fox", negative_prompt="(wrong)1.5, blurry")
    expected = pipeline(
        prompt_embeds=encoded.embeds,
        pooled_prompt_embeds=encoded.pooled_embeds,
        negative_prompt_embeds=encoded.negative_embeds,
        negative_pooled_prompt_embeds=encoded.negative_pooled_embeds,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    weighted = replace(FOX, prompt="a (red)++++ fox", negative="(wrong)1.5, blurry")
    images = tiny_model.generate([weighted], BASE_ALONE) + tiny_model.generate([FOX], BASE_ALONE)
    assert difference(images[0].image, expected) <= 1
    assert difference(images[0].image, images[1].image) > 10


@pytest.mark.parametrize(
    "text", ["a fox", "", 'a "red" fox, bad quality', "wrong", "cup (star)", "a fox: 3.5, [moon]"]
)
def test_plain_text_has_exactly_the_pipelines_encoding(tiny_model: Model, tiny_folder: Path, text: str):
    embeds, _, pooled, _ = stock(tiny_folder).encode_prompt(text, do_classifier_free_guidance=False)
    encoded = tiny_model._words.positive(text)  # type: ignore[attr-defined]
    assert torch.equal(encoded.embeds_1TD, embeds)
    assert torch.equal(encoded.pooled_1P, pooled)


@pytest.mark.parametrize("prompt", ["fox " * 76, "(fox)++ " + "fox " * 76])
def test_a_prompt_that_would_be_cut_is_refused(tiny_model: Model, prompt: str):
    with pytest.raises(ModelError, match="77 tokens"):
        tiny_model.generate([replace(FOX, prompt=prompt)], BASE_ALONE)


@pytest.mark.parametrize("refiner_start", [None, 0.6])
def test_a_size_is_that_of_the_stock_pipeline(tiny_model: Model, tiny_folder: Path, refiner_start):
    settings = SamplerSettings(steps=5, refiner_start=refiner_start, size=(96, 64))
    images = tiny_model.generate([FOX, replace(FOX, seed=4)], settings)
    assert images[0].image.size == (96, 64)
    noise = torch.randn(1, 8, 8, 12, generator=seeded(3))
    assert images[0].latent_hash == hashlib.sha256(noise.numpy().tobytes()).hexdigest()
    [alone] = tiny_model.generate([FOX], settings)
    assert difference(images[0].image, alone.image) <= 2
    if refiner_start is None:
        words = {"negative_prompt": "wrong", "num_inference_steps": 5, "guidance_scale": 5.0}
        expected = stock(tiny_folder)(FOX.prompt, **words, width=96, height=64, generator=seeded(3)).images[0]
        assert difference(alone.image, expected) == 0
    with pytest.raises(ModelError, match=r"size \(60, 64\) must be multiples of 8"):
        tiny_model.generate([FOX], replace(settings, size=(60, 64)))


@pytest.mark.parametrize("refiner_start", [None, 0.6])
def test_guidance_is_rescaled_in_base_and_refiner(tiny_model: Model, tiny_folder: Path, refiner_start):
    plain = SamplerSettings(steps=5, refiner_start=refiner_start)
    rescaled = replace(plain, guidance_rescale=0.7)
    [before], [after] = tiny_model.generate([FOX], plain), tiny_model.generate([FOX], rescaled)
    assert difference(before.image, after.image) > 3
    together = tiny_model.generate([FOX, replace(FOX, seed=4)], rescaled)
    assert difference(together[0].image, after.image) <= 2
    if refiner_start is None:
        words = {"negative_prompt": "wrong", "num_inference_steps": 5, "guidance_scale": 5.0}
        expected = stock(tiny_folder)(FOX.prompt, **words, guidance_rescale=0.7, generator=seeded(3)).images[
            0
        ]
        assert difference(after.image, expected) == 0


def test_on_a_cpu_eight_small_images_are_drawn_at_once(tiny_model: Model):
    assert tiny_model.images_per_batch(BASE_ALONE) == 8
    assert tiny_model.images_per_batch(replace(BASE_ALONE, size=(512, 512))) == 4
    assert tiny_model.images_per_batch(replace(BASE_ALONE, size=(2048, 1024))) == 1


def test_on_a_gpu_as_many_as_a_probe_says_the_free_memory_holds(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
):
    """Two rows of the probe cost 1000 together; four fifths of the free memory are counted on."""
    readings = {"memory_allocated": 100, "max_memory_allocated": 1100, "mem_get_info": (11_000, 99_999)}
    for name in ("empty_cache", "reset_peak_memory_stats", *readings):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: readings.get(name))
    assert tiny_model._measured_at_once(WITH_REFINER) == 16  # 17 would fit; a power of two is stable
    readings["mem_get_info"] = (100, 99_999)
    assert tiny_model._measured_at_once(WITH_REFINER) == 1


def test_out_of_memory_says_what_to_do(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    def forward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tiny_model._unet, "forward", forward)
    with pytest.raises(ModelError, match=r"2 images at once do not fit .* set compute\.batch_size"):
        tiny_model.generate([FOX, replace(FOX, seed=4)], BASE_ALONE)


def test_refiner_start_needs_a_refiner(tiny_folder: Path):
    model = load_model(spec_of(tiny_folder, refiner=False), device="cpu")
    with pytest.raises(ModelError, match="refiner_start: null"):
        model.generate([FOX], WITH_REFINER)


def test_images_that_are_not_finite_are_refused(tiny_folder: Path):
    model = load_model(spec_of(tiny_folder), device="cpu")
    broken = model._base.vae.decoder.conv_out.weight  # type: ignore[attr-defined]
    broken.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"2 of 2 images are not finite .*seed 3"):
        model.generate([FOX, replace(FOX, seed=4)], BASE_ALONE)


def test_posterior_is_the_vaes_in_the_unets_units(tiny_model: Model, tiny_folder: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    posterior = tiny_model.encode_images([Image.fromarray(p) for p in pixels])
    vae = stock(tiny_folder).vae
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(
        posterior.mean_NChw, expected.mean * vae.config.scaling_factor, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        posterior.std_NChw, expected.std * vae.config.scaling_factor, rtol=1e-4, atol=1e-5
    )
    assert posterior.mean_NChw.shape == (6, 8, 8, 8) and posterior.mean_NChw.dtype == torch.float32


def test_noise_schedule_is_the_training_schedule(tiny_model: Model, tiny_folder: Path):
    alphas, prediction_type = tiny_model.noise_schedule()
    training = DDPMScheduler.from_config(stock(tiny_folder).scheduler.config)
    torch.testing.assert_close(alphas[:-1], training.alphas_cumprod[:-1])
    assert alphas.shape == (1000,) and 0 < alphas[-1] < 1e-6  # zero terminal SNR, kept above zero by Euler
    assert prediction_type == "v_prediction"
    alphas.zero_()
    assert tiny_model.noise_schedule()[0][0] > 0.9
