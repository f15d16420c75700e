"""The embedded model through the real code, and through stock diffusers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from harness.config.loading.tokens import EMOJI_FOLDER, check_prompt_lengths, model_digest
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from tests.diffusion.adapters.adapters import random_adapter
from tests.diffusion.models.test_sdxl import difference, seeded

FOX = Row(prompt="a fox on a blue background", negative="wrong", seed=0, guidance=4.0)
WORDS = {"prompt": FOX.prompt, "negative_prompt": FOX.negative, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def emoji() -> Model:
    return load_model(EmojiModel(), device="cpu")


@pytest.fixture
def base() -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(EMOJI_FOLDER / "base")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_draws_what_stock_pipelines_draw(emoji: Model, base: StableDiffusionXLPipeline):
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        EMOJI_FOLDER / "refiner",
        text_encoder_2=base.text_encoder_2,
        tokenizer_2=base.tokenizer_2,
        vae=base.vae,
    )
    refiner.set_progress_bar_config(disable=True)
    latents = base(
        **WORDS, num_inference_steps=10, generator=seeded(0), denoising_end=0.8, output_type="latent"
    ).images
    [blank] = refiner.image_processor.postprocess(latents[:, :3] * 0)  # the stock refiner asks for an image
    expected = refiner(
        **WORDS, num_inference_steps=10, image=blank, latents=latents, denoising_start=0.8
    ).images[0]
    settings = SamplerSettings(steps=10, refiner_start=0.8)
    [image] = emoji.generate([FOX], settings)
    assert image.image.size == (64, 64) == (emoji.resolution,) * 2
    assert difference(image.image, expected) == 0
    rows = [FOX, replace(FOX, negative="", prompt="a (red)++ car"), replace(FOX, seed=1)]
    assert difference(emoji.generate(rows, settings)[0].image, image.image) <= 2


def test_an_adapter_goes_to_a_stock_pipeline(emoji: Model, base: StableDiffusionXLPipeline, tmp_path: Path):
    random_adapter(emoji, tmp_path, seed=1)
    base.load_lora_weights(tmp_path)
    expected = base(**WORDS, num_inference_steps=6, generator=seeded(0)).images[0]
    row = replace(FOX, adapters=(RowAdapter(path=tmp_path, scale=1.0, branch="both"),))
    settings = SamplerSettings(steps=6, refiner_start=None)
    [drawn] = emoji.generate([row], settings)
    [plain] = emoji.generate([FOX], settings)
    assert difference(drawn.image, expected) <= 2
    assert difference(drawn.image, plain.image) > 10


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_its_tokenizers_are_there_in_their_older_form_too(name: str):
    """What transformers 4 and kohya's scripts read: the same tokens, and no other model for it."""
    folder = EMOJI_FOLDER / "base" / name
    pairs = [line.split() for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    older = CLIPTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()), merges=[(a, b) for a, b in pairs]
    )
    newer = CLIPTokenizer.from_pretrained(folder)
    for text in ("a red fox, blurry; an ogre's 3 hats", FOX.prompt, "wrong", "ü?!"):
        assert older(text).input_ids == newer(text).input_ids


def test_its_files_are_known_without_torch():
    digest = model_digest(EmojiModel())
    assert digest is not None and len(digest) == 64
    check_prompt_lengths(EmojiModel(), [FOX.prompt, "wrong"])
