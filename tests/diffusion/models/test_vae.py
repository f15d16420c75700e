"""Images to latents and back, in slices and without overflow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from harness.diffusion.models import load_model, vae
from harness.diffusion.models.model import Model, Row, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.models.test_sdxl import difference, stock
from tests.diffusion.tiny import tiny_config

FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0)


def images(count: int, width: int, height: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def test_images_need_not_be_square(tiny_model: Model):
    posterior = tiny_model.encode_images(images(2, 96, 64))
    assert posterior.mean_NChw.shape == posterior.std_NChw.shape == (2, 8, 8, 12)
    with pytest.raises(AssertionError, match="one size"):
        tiny_model.encode_images([*images(1, 96, 64), *images(1, 64, 64)])
    with pytest.raises(AssertionError, match="multiples of 8"):
        tiny_model.encode_images(images(1, 60, 64))


def test_slices_change_nothing(tiny_model: Model, monkeypatch: pytest.MonkeyPatch):
    latents = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline = tiny_model._base  # type: ignore[attr-defined]
    with torch.inference_mode():
        whole, encoded = vae.decode(pipeline, latents), tiny_model.encode_images(images(3, 64, 64))
        monkeypatch.setattr(vae, "PIXELS_AT_ONCE", 2 * 64 * 64)
        sizes: list[int] = []
        hook = pipeline.vae.decoder.register_forward_hook(lambda _m, x, _y: sizes.append(len(x[0])))
        sliced, again = vae.decode(pipeline, latents), tiny_model.encode_images(images(3, 64, 64))
        hook.remove()
    assert sizes == [2, 1]
    torch.testing.assert_close(sliced, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.mean_NChw, encoded.mean_NChw, rtol=1e-4, atol=1e-5)


def test_a_vae_that_overflows_in_fp16_draws_no_black_image(tiny_folder: Path, tmp_path: Path):
    """SDXL's own VAE does, says so in its configuration, and is lifted to fp32 for the while."""
    loud: AutoencoderKL = stock(tiny_folder).vae
    with torch.no_grad():
        first = loud.decoder.mid_block.resnets[0]  # the group norms behind it take the loudness back
        for part, factor in ((first.norm2, 200), (first.conv2, 1e4)):
            part.weight.mul_(factor)
            part.bias.mul_(factor)
    loud.register_to_config(force_upcast=True)
    loud.save_pretrained(tmp_path)
    drawn = []
    for precision in ("fp32", "fp16"):
        config = tiny_config(tiny_folder, refiner=False)
        config = config.model_copy(update={"vae": str(tmp_path), "precision": precision})
        model = load_model(config, device="cpu")
        drawn.append(model.generate([FOX], SamplerSettings(steps=3, refiner_start=None))[0].image)
        assert model._base.vae.dtype == model._base.unet.dtype  # type: ignore[attr-defined]
    assert np.asarray(drawn[1]).std() > 10
    assert difference(*drawn) < 60
    model._base.vae.register_to_config(force_upcast=False)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"Set model\.precision: bf16, or model\.vae: madebyollin"):
        model.generate([FOX], SamplerSettings(steps=3, refiner_start=None))
