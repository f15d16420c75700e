"""Generation and encoding on a CUDA device that is not there; see `tests/fake_cuda.py`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import torch
from PIL import Image

from harness.config.schema.adapter import AdapterConfig, LowRankAdapter, TextualInversion
from harness.config.schema.evaluation import ApgGuider, CfgZeroStarGuider, MergeConfig, Scheduler
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from harness.diffusion.models.random_weights import hollow_pipelines
from harness.diffusion.models.sdxl import Sdxl
from tests.diffusion.adapters.adapters import attached, base_of, random_adapter
from tests.diffusion.models.test_attach import inputs, parameters_of, randomise
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda, is_fake

SHORT = SamplerSettings(steps=2, refiner_start=None)
HANDED_OVER = SamplerSettings(steps=2, refiner_start=0.5, guidance_rescale=0.7)
FOX = Row(prompt="a red (fox)++", negative="wrong", seed=0, guidance=5.0)
EVERYWHERE = ("attention", "convolutions", "feed_forward")
KINDS: dict[str, AdapterConfig] = {
    "lora": LowRankAdapter(rank=4, targets=EVERYWHERE),
    "other": LowRankAdapter(rank=4, targets=EVERYWHERE),
    "dora": LowRankAdapter(kind="dora", rank=12, blocks=("mid_block",)),
    "words": LowRankAdapter(rank=2, text_encoders=True, blocks=("mid_block",)),
    "embedding": TextualInversion(vectors=2),
}


@pytest.fixture(scope="module")
def adapters(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: random_adapter(tiny_model, folder / name, seed=seed, adapter=adapter)
        for seed, (name, adapter) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def on_cuda(tiny_config: SdxlModel) -> Model:
    """In fp16, in which the VAE is made fp32 where it encodes and decodes."""
    with fake_cuda():
        return load_model(tiny_config.model_copy(update={"precision": "fp16"}), device=CUDA)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as cuda:
        yield cuda


def acting(adapters: dict[str, Path], **branches: Any) -> tuple[RowAdapter, ...]:
    return tuple(RowAdapter(path=adapters[name], scale=0.5, branch=on) for name, on in branches.items())


def test_adapters_act_on_either_branch_under_each_guider_up_to_the_refiner(
    adapters: dict[str, Path], on_cuda: Model, cuda: FakeCuda
) -> None:
    """One batch of each guider. The embedding acts at another scale than 1, and measuring adds rows."""
    merged = acting(adapters, lora="negative", other="negative")
    rows = [
        replace(FOX, adapters=acting(adapters, lora="negative", dora="positive"), measured=True),
        replace(FOX, adapters=acting(adapters, words="both"), negative="{prompt}", measured=True),
        replace(FOX, adapters=merged, merge=MergeConfig(method="linear")),
        replace(FOX, guider=ApgGuider(momentum=-0.5), guidance_interval=(0.0, 0.6)),
        replace(FOX, guider=CfgZeroStarGuider(), adapters=acting(adapters, embedding="negative")),
    ]
    images = on_cuda.generate(rows, HANDED_OVER)
    assert [image.image.size for image in images] == [(64, 64)] * len(rows)


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_every_scheduler_walks_on_the_device(on_cuda: Model, cuda: FakeCuda, scheduler: Scheduler) -> None:
    (image,) = on_cuda.generate([FOX], replace(SHORT, scheduler=scheduler))
    assert image.image.size == (64, 64)


def test_a_denoising_step_does_not_wait_for_the_device(
    adapters: dict[str, Path], on_cuda: Model, cuda: FakeCuda
) -> None:
    """However many there are: what waits is done once an image. Measuring took rows by lists of indices."""
    row = replace(FOX, adapters=acting(adapters, lora="negative"), measured=True)
    waits = []
    for steps in (2, 2, 4):  # the first one reads the adapter and encodes the prompts
        cuda.waits.clear()
        on_cuda.generate([row], replace(SHORT, steps=steps))
        waits.append(len(cuda.waits))
    assert waits[1] == waits[2]


def test_stored_texts_reach_the_device_and_are_not_encoded_again(
    on_cuda: Model, cuda: FakeCuda, tmp_path: Path
) -> None:
    texts = ("a blue (cat)++", "", "bad")
    on_cuda.texts.write(texts, tmp_path / "texts.safetensors")
    words: Any = on_cuda._words  # type: ignore[attr-defined]
    refiner: Any = on_cuda._refiner_words  # type: ignore[attr-defined]
    for encoder in (words, refiner):
        encoder._cache.clear()
    on_cuda.texts.read(texts, tmp_path / "texts.safetensors")
    assert not on_cuda.texts.unknown(texts)
    found = words.positive(texts[0])
    assert is_fake(found.embeds_1TD) and is_fake(found.pooled_1P)
    rows = [replace(FOX, prompt=texts[0], negative=text) for text in texts[1:]]
    with mock.patch.object(base_of(on_cuda).text_encoder_2, "forward", side_effect=AssertionError):
        on_cuda.generate(rows, HANDED_OVER)


def test_images_are_encoded_on_the_device_and_a_probe_says_how_many_are_drawn(
    on_cuda: Model, cuda: FakeCuda
) -> None:
    posterior = on_cuda.encode_images([Image.new("RGB", (64, 64))] * 3)
    assert is_fake(posterior.mean_NChw) and posterior.std_NChw.dtype == torch.float32
    assert on_cuda.images_per_batch(SHORT) in (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.slow
def test_full_size_sdxl_hands_over_to_its_refiner(cuda: FakeCuda, tmp_path: Path) -> None:
    """At 1024 px in bf16, with a LoRA in the negative branch."""
    config = SdxlModel(source="random", refiner="random", vae=None, precision="bf16")
    model = Sdxl(config, hollow_pipelines(config), device=CUDA)
    adapter = LowRankAdapter(rank=8, blocks=("mid_block",))
    with attached(model, adapter, 0) as trainable:
        model.save_adapter(trainable.state_dict(), adapter, tmp_path, {})
    row = replace(FOX, adapters=(RowAdapter(path=tmp_path, scale=1.0, branch="negative"),))
    (image,) = model.generate([row], HANDED_OVER)
    assert image.image.size == (1024, 1024)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_row_wise_layers_do_not_mind_the_channels_last(kind: str) -> None:
    """The layout that a UNet has on a GPU, on the CPU: up to rounding, the same predictions and gradients."""
    adapter = LowRankAdapter(kind=kind, rank=4, targets=EVERYWHERE)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = load_model(EmojiModel(), device="cpu")
        base_of(model).unet.to(memory_format=layout)
        with attached(model, adapter, 0) as trainable:
            randomise(trainable)
            predicted = trainable.predict(*inputs(3))
            predicted.square().sum().backward()
            gradients = [p.grad.flatten() for p in parameters_of(trainable) if p.grad is not None]
        found.append((predicted.detach(), torch.cat(gradients)))
    for plain, last in zip(*found, strict=True):
        assert (last - plain).norm() < 1e-4 * plain.norm()
