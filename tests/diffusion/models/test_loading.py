"""From a specification to a model: what is read, what is overridden, and what each fault says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file, save_file

from harness.config.schema.model import SdxlModel
from harness.diffusion.models import load_model
from harness.diffusion.models.loading import _from_file
from harness.diffusion.models.model import Model
from harness.errors import ConfigError, ModelError
from tests.diffusion.adapters.adapters import base_of
from tests.diffusion.models.test_sdxl import BASE_ALONE, FOX, WITH_REFINER, difference
from tests.diffusion.original import original_vae, write_original
from tests.diffusion.tiny import refiner_folder, tiny_sdxl
from tests.diffusion.tiny import tiny_config as spec_of


def test_a_folder_that_is_not_there(tiny_config: SdxlModel, tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_model(tiny_config.model_copy(update={"source": str(tmp_path / "nothing")}), device="cpu")


def test_a_folder_of_another_layout(tiny_config: SdxlModel, tmp_path: Path):
    with pytest.raises(ModelError, match=r"diffusers' layout \(model_index.json\)"):
        load_model(tiny_config.model_copy(update={"source": str(tmp_path)}), device="cpu")


def test_a_damaged_weight_file(tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(spec_of(folder), device="cpu")


def test_a_variant_that_is_not_there(tiny_config: SdxlModel):
    with pytest.raises(ModelError, match=r"model\.variant: null"):
        load_model(tiny_config.model_copy(update={"variant": "fp16"}), device="cpu")


def test_a_refiner_in_the_bases_place(tiny_config: SdxlModel):
    with pytest.raises(ModelError, match=r"it is a refiner; give it as model\.refiner"):
        load_model(tiny_config.model_copy(update={"source": tiny_config.refiner}), device="cpu")


def test_a_base_in_the_refiners_place(tiny_config: SdxlModel):
    with pytest.raises(ModelError, match=r"set model\.refiner to a refiner of this base"):
        load_model(tiny_config.model_copy(update={"refiner": tiny_config.source}), device="cpu")


def test_a_hub_id_that_cannot_be_downloaded(tiny_config: SdxlModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Check the id and its revision, and the network"):
        load_model(tiny_config.model_copy(update={"source": "nobody/nothing"}), device="cpu")


def test_a_scheduler_that_the_harness_does_not_know(tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", "LCMScheduler"))
    with pytest.raises(ModelError, match=r"has the scheduler LCMScheduler.*one of DDIMScheduler"):
        load_model(spec_of(folder, refiner=False), device="cpu")


def test_a_model_with_another_scheduler_of_its_own(tiny_model: Model, tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", "DDIMScheduler"))
    model = load_model(spec_of(folder, refiner=False), device="cpu")
    assert (tiny_model.scheduler, model.scheduler) == ("EulerDiscreteScheduler", "DDIMScheduler")
    [own] = model.generate([FOX], BASE_ALONE)
    [named] = tiny_model.generate([FOX], replace(BASE_ALONE, scheduler="DDIMScheduler"))
    assert difference(own.image, named.image) > 10  # its configuration clips what it predicts to ±1
    assert torch.equal(model.noise_schedule()[0][:-1], tiny_model.noise_schedule()[0][:-1])


def test_what_the_unet_predicts_can_be_told(tiny_config: SdxlModel, tiny_model: Model):
    config = tiny_config.model_copy(update={"prediction_type": "epsilon"})
    model = load_model(config, device="cpu")
    assert model.noise_schedule()[1] == "epsilon"
    for settings in (BASE_ALONE, WITH_REFINER, replace(BASE_ALONE, scheduler="UniPCMultistepScheduler")):
        [told], [own] = model.generate([FOX], settings), tiny_model.generate([FOX], settings)
        assert difference(told.image, own.image) > 10


def test_another_vae_and_another_precision(tiny_folder: Path, tiny_model: Model):
    config = spec_of(tiny_folder).model_copy(update={"vae": str(tiny_folder / "vae"), "precision": "bf16"})
    model = load_model(config, device="cpu")
    [half] = model.generate([FOX], BASE_ALONE)
    [full] = tiny_model.generate([FOX], BASE_ALONE)
    assert half.latent_hash == full.latent_hash
    mean = np.abs(np.asarray(half.image).astype(int) - np.asarray(full.image).astype(int)).mean()
    assert 0 < mean < 15  # bf16 keeps 8 bits


def test_prints_nothing(tiny_config: SdxlModel, capfd: pytest.CaptureFixture[str]):
    load_model(tiny_config, device="cpu").generate([FOX], WITH_REFINER)
    assert capfd.readouterr() == ("", "")


def test_a_vae_that_shifts_its_latents(tiny_folder: Path, tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latents_mean": null', '"latents_mean": [0, 0, 0, 0]'))
    with pytest.raises(ModelError, match=r"latents_mean.*give a VAE without it as model\.vae"):
        load_model(spec_of(folder, refiner=False), device="cpu")
    mended = spec_of(folder, refiner=False).model_copy(update={"vae": str(tiny_folder / "vae")})
    load_model(mended, device="cpu")


class TestOneFile:
    """A model under the names of Stability AI's own code is the same model."""

    @pytest.fixture(scope="class")
    @classmethod
    def file(cls, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_original(tiny_folder, tmp_path_factory.mktemp("file") / "tiny.safetensors")

    def in_one(self, file: Path, folder: Path, **more: Any) -> SdxlModel:
        config = spec_of(folder, refiner=False)
        return config.model_copy(update={"source": str(file), "config": str(folder), **more})

    def test_draws_the_same_image(self, file: Path, tiny_folder: Path, tiny_model: Model):
        model = load_model(
            self.in_one(file, tiny_folder, refiner=str(refiner_folder(tiny_folder))), device="cpu"
        )
        for settings in (BASE_ALONE, WITH_REFINER):
            [one], [folder] = model.generate([FOX], settings), tiny_model.generate([FOX], settings)
            assert one.image.tobytes() == folder.image.tobytes()
        assert not any(p.requires_grad for p in base_of(model).unet.parameters())

    def test_a_vae_and_a_refiner_in_files(self, tiny_folder: Path, tmp_path: Path):
        whole = write_original(tiny_folder, tmp_path / "whole.safetensors")
        vae = original_vae(load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"))
        save_file({key: t * 1.01 for key, t in vae.items()}, tmp_path / "vae.safetensors")
        bare = write_original(tiny_folder, tmp_path / "bare.safetensors", vae=False)
        with pytest.raises(ModelError, match=r"has no VAE; give one as model\.vae"):
            load_model(self.in_one(bare, tiny_folder), device="cpu")
        images = []
        for file in (bare, whole):  # its own VAE gives way
            config = self.in_one(file, tiny_folder, vae=str(tmp_path / "vae.safetensors"))
            [drawn] = load_model(config, device="cpu").generate([FOX], BASE_ALONE)
            images.append(drawn.image)
        [own] = load_model(self.in_one(whole, tiny_folder), device="cpu").generate([FOX], BASE_ALONE)
        assert images[0].tobytes() == images[1].tobytes() and difference(images[0], own.image) > 0

        folder = refiner_folder(tiny_folder)
        file = write_original(folder, tmp_path / "refiner.safetensors")
        refiner = _from_file(StableDiffusionXLImg2ImgPipeline, file, str(folder), torch_dtype=torch.float32)
        stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(tensor, stored[key]) for key, tensor in refiner.unet.state_dict().items())
        assert refiner.text_encoder is None and refiner.config.requires_aesthetics_score

    def test_predicts_what_its_marks_say(self, tmp_path: Path):
        folder = tiny_sdxl(tmp_path / "sdxl", prediction_type="epsilon")
        plain = write_original(folder, tmp_path / "plain.safetensors")
        nothing = torch.zeros(0)
        marked = write_original(folder, tmp_path / "marked.safetensors", v_pred=nothing, ztsnr=nothing)
        said = write_original(
            folder, tmp_path / "said.safetensors", metadata={"modelspec.prediction_type": "v"}
        )

        def schedule(file: Path, **more: Any) -> tuple[float, str]:
            alphas, kind = load_model(self.in_one(file, folder, **more), device="cpu").noise_schedule()
            return alphas[-1].item(), kind

        last, kind = schedule(plain)
        assert kind == "epsilon" and last > 1e-3
        assert schedule(marked) == (2**-24, "v_prediction")
        assert schedule(said) == (last, "v_prediction")
        assert schedule(marked, prediction_type="epsilon") == (last, "epsilon")

    def test_a_file_that_lacks_tensors_or_fits_no_configuration(
        self, file: Path, tiny_folder: Path, tmp_path: Path
    ):
        state = load_file(file)
        for lost, words in (
            (".out.0.bias", "tensors of the model are not in it"),
            ("ln_final.bias", "lacks 1 tensors"),
        ):
            rest = {key: t for key, t in state.items() if not key.endswith(lost)}
            save_file(rest, tmp_path / "lost.safetensors")
            with pytest.raises(ModelError, match=rf"lost\.safetensors .*{words}"):
                load_model(self.in_one(tmp_path / "lost.safetensors", tiny_folder), device="cpu")
        other = tiny_sdxl(tmp_path / "other", latent_channels=4)
        with pytest.raises(ModelError, match=r"tiny\.safetensors cannot be loaded by .*other"):
            load_model(self.in_one(file, other), device="cpu")
        with pytest.raises(ModelError, match=r"is not SDXL 1\.0: its unet\.conv_in is \[16, 8, 3, 3\]"):
            load_model(self.in_one(file, tiny_folder, config=None), device="cpu")
